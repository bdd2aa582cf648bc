"""Mistakes that only files can tell, each with the words that help."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtrain.checkpoint import catalog
from bigtrain.config import Config
from bigtrain.errors import CheckpointError, ConfigError, DataError
from bigtrain.prepare.prepare import prepare
from bigtrain.prepare.train_tokenizer import train_sentencepiece
from bigtrain.training.preflight import preflight

RunConfig = Callable[..., Config]


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the training data, to be spoilt."""
    return shutil.copytree(dataset / "train", tmp_path / "copy")


@pytest.fixture(scope="module")
def other(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tokenizer, and a dataset made with it."""
    folder = tmp_path_factory.mktemp("other")
    text = corpus[-1].read_text()
    (folder / "text.txt").write_text(text)
    path = train_sentencepiece([text], folder / "other.model", 400)
    prepare([folder / "text.txt"], folder / "data", path, workers=1)
    return folder


def checkpoint_of(config: Config, step: int = 2) -> Path:
    """A checkpoint of that run, but for its tensors."""
    folder = Path(config.training.output_dir) / "checkpoints"
    aside, final = folder / ".writing", folder / f"step-{step:08d}"
    aside.mkdir(parents=True)
    marker: dict[str, Any] = {
        "format_version": catalog.FORMAT_VERSION,
        "step": step,
        "position": 4 * step,
        "tokens": 64 * step,
        "adam_step": step,
        "model": config.model.model_dump(mode="json"),
        "layout": {},
        "data": preflight(config).data_identity,
        "files": {},
    }
    catalog.publish(folder, aside, final, marker)
    return final


def test_a_sound_run(run_config: RunConfig, dataset: Path) -> None:
    config = run_config(f"data.validation={dataset / 'validation'}", f"tokenizer.path={dataset / 'train'}")
    found = preflight(config)
    assert Path(config.training.output_dir).is_dir()
    assert list(Path(config.training.output_dir).iterdir()) == []
    assert len(found.train) == (found.train.dataset.tokens - 1) // 16
    assert found.train.shuffle
    assert found.train.seed == 1234
    assert found.validation is not None
    assert not found.validation.shuffle
    assert found.checkpoint is None


def test_it_needs_no_torch(run_config: RunConfig, tmp_path: Path) -> None:
    from bigtrain.config import to_yaml

    (tmp_path / "run.yaml").write_text(to_yaml(run_config()))
    program = (
        "import sys\n"
        "from bigtrain.config import load_config\n"
        "from bigtrain.training.preflight import preflight\n"
        "preflight(load_config(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "run.yaml"], check=True)


@pytest.mark.parametrize(("inside", "reason"), [("", "File exists"), ("/run", "Not a directory")])
def test_an_output_that_cannot_be_written(run_config: RunConfig, tmp_path: Path, inside: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"training.output_dir {tmp_path}/file{inside} cannot be written: {reason}"):
        preflight(run_config(f"training.output_dir={tmp_path}/file{inside}"))


@pytest.mark.parametrize("key", ["data.train", "data.validation"])
def test_no_data(run_config: RunConfig, key: str) -> None:
    with pytest.raises(DataError, match=f"^{key}: /nowhere: no dataset there"):
        preflight(run_config(f"{key}=/nowhere"))


def test_a_missing_shard(run_config: RunConfig, copy: Path) -> None:
    (copy / "shard-00000.arrow").unlink()
    with pytest.raises(DataError, match=rf"^data\.train: {copy}/shard-00000\.arrow: .*No such file"):
        preflight(run_config(f"data.train={copy}"))


def test_a_truncated_shard(run_config: RunConfig, copy: Path) -> None:
    shard = copy / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"^data\.validation: {shard}: has 1000 bytes"):
        preflight(run_config(f"data.validation={copy}"))


def test_another_tokenizer_than_the_datas(run_config: RunConfig, dataset: Path, other: Path) -> None:
    with pytest.raises(DataError, match=rf"other\.model: not the tokenizer that made {dataset / 'train'}"):
        preflight(run_config(f"tokenizer.path={other / 'other.model'}"))


def test_held_out_text_of_another_tokenizer(run_config: RunConfig, dataset: Path, other: Path) -> None:
    words = rf"^data\.validation: {other}/data/train was made with another tokenizer than data\.train"
    with pytest.raises(DataError, match=rf"{words} .*prepare it again with {dataset}/train/tokenizer\.model"):
        preflight(run_config(f"data.validation={other / 'data/train'}"))


def test_the_sources_of_a_mixture_need_one_tokenizer(run_config: RunConfig, dataset: Path, other: Path) -> None:
    sources = f"data.sources={{one: {{path: {dataset / 'train'}}}, two: {{path: {other / 'data/train'}}}}}"
    with pytest.raises(DataError, match=r"data\.sources\.two\.path: .* another tokenizer than data\.sources\.one "):
        preflight(run_config("data.train=null", sources))


def test_a_tokenizer_that_is_not_there(run_config: RunConfig) -> None:
    with pytest.raises(DataError, match=r"/nowhere/tokenizer\.model: the tokenizer cannot be read"):
        preflight(run_config("tokenizer.path=/nowhere/tokenizer.model"))


def test_a_vocabulary_larger_than_the_models(run_config: RunConfig) -> None:
    words = r"model\.vocab_size \(300\) is below the 512 tokens .* \(data\.train\); 512 would fit"
    with pytest.raises(ConfigError, match=words):
        preflight(run_config("model.vocab_size=300"))


def test_data_of_less_than_a_sample(run_config: RunConfig, dataset: Path) -> None:
    long = ("model.max_position_embeddings=1000000", "training.sequence_length=100000")
    preflight(run_config(*long))
    words = rf"{dataset}/validation: its \d+ tokens do not fill one sample of training\.sequence_length 100000 .*100001"
    with pytest.raises(DataError, match=words):
        preflight(run_config(*long, f"data.validation={dataset / 'validation'}"))


def test_a_checkpoint_is_found_and_the_layout_steps_and_place_may_change(
    run_config: RunConfig, dataset: Path, copy: Path
) -> None:
    path = checkpoint_of(run_config())
    words = (
        "training.steps=9",
        "training.global_batch_size=8",
        "training.precision=bf16",
        "parallel.zero_stage=3",
        "optimizer.lr=0.5",
        f"data.train={copy}",
        f"data.validation={dataset / 'validation'}",
    )
    found = preflight(run_config(*words)).checkpoint
    assert found is not None
    assert found.path == path
    assert found.state == catalog.TrainingState(step=2, position=8, tokens=128)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("model.intermediate_size=64", r"model\.intermediate_size was 48 and is 64"),
        ("model.tie_word_embeddings=true", r"model\.tie_word_embeddings was False and is True"),
        ("training.seed=5", r"training\.seed was 1234 and is 5"),
        ("training.sequence_length=32", r"training\.sequence_length was 16 and is 32"),
        ("data.shuffle=false", r"data\.shuffle was True and is False"),
    ],
)
def test_resuming_with_a_changed(run_config: RunConfig, word: str, told: str) -> None:
    path = checkpoint_of(run_config())
    with pytest.raises(CheckpointError, match=f"^{path} cannot be resumed with this configuration: {told}"):
        preflight(run_config(word))


@pytest.mark.parametrize("word", ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"])
def test_dropout_may_change(run_config: RunConfig, word: str) -> None:
    checkpoint_of(run_config())
    assert preflight(run_config(word)).checkpoint is not None


def test_an_option_younger_than_the_checkpoint_counts_as_its_default(run_config: RunConfig) -> None:
    path = checkpoint_of(run_config())
    marker = json.loads((path / catalog.MARKER).read_text())
    del marker["model"]["qkv_bias"]
    (path / catalog.MARKER).write_text(json.dumps(marker))
    assert preflight(run_config()).checkpoint is not None
    with pytest.raises(CheckpointError, match=r"model\.qkv_bias was False and is True"):
        preflight(run_config("model.qkv_bias=true"))


def test_resuming_on_other_data(run_config: RunConfig, dataset: Path) -> None:
    path = checkpoint_of(run_config())
    with pytest.raises(CheckpointError, match=rf"^{path} cannot .*data\.train \(its contents\) was '\w+' and is '\w+'"):
        preflight(run_config(f"data.train={dataset / 'validation'}"))


def test_all_changes_are_told_at_once(run_config: RunConfig) -> None:
    checkpoint_of(run_config())
    with pytest.raises(CheckpointError, match=r"training\.seed was .*; data\.shuffle was .*training\.output_dir"):
        preflight(run_config("training.seed=5", "data.shuffle=false"))


def test_checkpoints_where_a_new_run_was_wanted(run_config: RunConfig) -> None:
    path = checkpoint_of(run_config())
    with pytest.raises(CheckpointError, match=rf"{path.parent} holds .*checkpoint\.resume is false.*output_dir"):
        preflight(run_config("checkpoint.resume=false"))


def test_a_checkpoint_beyond_the_end(run_config: RunConfig) -> None:
    path = checkpoint_of(run_config(), step=4)
    preflight(run_config())
    with pytest.raises(CheckpointError, match=rf"{path} is at step 4, beyond training\.steps \(3\)"):
        preflight(run_config("training.steps=3"))


def test_a_damaged_checkpoint(run_config: RunConfig) -> None:
    path = checkpoint_of(run_config())
    (path / catalog.MARKER).write_text("[]")
    with pytest.raises(CheckpointError, match=f"{path}/complete.json is damaged"):
        preflight(run_config())


OF_T5 = ("model.architecture=t5", "model.position_embedding=relative", "model.num_key_value_heads=null")


def test_a_t5_needs_sentinels(run_config: RunConfig) -> None:
    """Told before any process starts, and what would make them."""
    with pytest.raises(DataError, match=r"data\.objective=span_corruption .* \(it has 0 of these\)\. Train one with"):
        preflight(run_config(*OF_T5))


def test_a_t5_goes_on_with_its_objective(run_config: RunConfig) -> None:
    checkpoint_of(run_config(*OF_T5, "data.objective=prefix_lm"))
    with pytest.raises(CheckpointError, match=r"data\.objective was 'prefix_lm' and is 'span_corruption'"):
        preflight(run_config(*OF_T5))
