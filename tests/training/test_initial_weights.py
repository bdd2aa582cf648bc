"""Which weights a run may begin with: `checkpoint.initialize_from`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from families import FAMILIES

from bigtrain.checkpoint import store
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.config import Config, load_config
from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.errors import CheckpointError, ConfigError
from bigtrain.parallel.engine import Engine
from bigtrain.training.preflight import preflight


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama from Hugging Face."""
    folder = tmp_path_factory.mktemp("llama")
    FAMILIES["llama"].build().save_pretrained(folder / "there")
    convert_from_hf(folder / "there", folder / "here", verify=False)
    return folder / "here"


@pytest.fixture
def config(here: Path, dataset: Path, tmp_path: Path) -> Callable[..., Config]:
    """A run's that extends it, with overrides."""

    def of(*overrides: str) -> Config:
        run = {
            "extends": str(here / "model.yaml"),
            "data": {"train": str(dataset / "train")},
            "training": {
                "output_dir": str(tmp_path / "run"),
                "steps": 2,
                "global_batch_size": 2,
                "sequence_length": 32,
                "precision": "fp32",
            },
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        return load_config(tmp_path / "run.yaml", overrides)

    return of


def test_a_run_that_extends_it_begins_with_it(config: Callable[..., Config], here: Path) -> None:
    found = preflight(config("model.hidden_dropout=0.1")).initial  # which is of training
    assert found is not None
    assert found.path == here / "checkpoints" / "step-00000000"
    assert found.origin["family"] == "llama"


@pytest.mark.parametrize(
    ("override", "error", "match"),
    [
        (
            "model.hidden_act=gelu",
            CheckpointError,
            "model: model.hidden_act is 'gelu' and there 'silu'",
        ),
        ("checkpoint.initialize_from=gone", CheckpointError, "checkpoint.initialize_from: gone: no such folder"),
        ("checkpoint.initialize_from=nonsense://x", ConfigError, "checkpoint.initialize_from: nonsense://x"),
    ],
)
def test_what_it_cannot_begin_with(
    override: str, error: type[Exception], match: str, config: Callable[..., Config]
) -> None:
    with pytest.raises(error, match=match):
        preflight(config(override))


def test_a_run_with_checkpoints_of_its_own_goes_on_from_these(
    config: Callable[..., Config], engine_of: Callable[[Config], Engine], tmp_path: Path
) -> None:
    """Also when the folder that it began with is gone."""
    begun = config()
    identity = preflight(begun).data_identity
    store.save(tmp_path / "run" / "checkpoints", engine_of(begun), TrainingState(1, 2, 64), identity, keep_last=1)
    found = preflight(config("checkpoint.initialize_from=gone"))
    assert found.checkpoint is not None
    assert found.initial is None
