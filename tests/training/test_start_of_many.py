"""What rank 0 sends is all that a rank needs to begin: of files it opens the shards that its samples lie in."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigtrain.checkpoint import catalog
from bigtrain.config import Config
from bigtrain.data.places import place
from bigtrain.data.shards import open_dataset
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.training.inputs import Inputs
from bigtrain.training.preflight import preflight

WORLD = 512
RANKS = (1, 8, 255, 511)
SHARDS = 40


@pytest.fixture
def shared(dataset: Path, tmp_path: Path) -> Path:
    """A folder that many nodes share: a dataset of 40 shards of 300 tokens, and one of real text."""
    folder = tmp_path / "shared"
    shutil.copytree(dataset, folder / "text")
    tokenizer = open_dataset(dataset / "train").load_tokenizer()
    parts = [
        Documents(np.full(300, 3 + number), np.array([300]), ["file"], [number], bytes=300) for number in range(SHARDS)
    ]
    write_dataset(folder / "train", parts, tokenizer, 300)
    assert len(open_dataset(folder / "train").manifest.shards) == SHARDS
    return folder


@pytest.fixture
def of_many(tiny: Callable[..., Config], shared: Path) -> Callable[..., Config]:
    """A configuration of 512 samples a step."""
    words = (
        f"data.train={shared / 'train'}",
        f"data.validation={shared / 'text/validation'}",
        f"training.output_dir={shared / 'run'}",
        f"training.global_batch_size={WORLD}",
        "training.micro_batch_size=1",
    )
    return lambda *overrides: tiny(*words, *overrides)


def received(sent: bytes) -> Inputs:
    found: Inputs = pickle.loads(sent)
    return found


def mapped(folder: Path) -> set[str]:
    """The shards in `folder` that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if str(folder) in line}


@pytest.mark.parametrize("how", ["one source", "best_fit", "padded", "mixture"])
def test_ranks_of_512_begin_without_the_files(
    of_many: Callable[..., Config], shared: Path, tmp_path: Path, how: str
) -> None:
    """While ranks begin the shared folder is gone, so that nobody can have looked into it."""
    mixture = (
        "data.train=null",
        f"data.sources={{a: {{path: {shared / 'train'}, weight: 1}}, b: {{path: {shared / 'text/train'}, weight: 2}}}}",
    )
    config = of_many(*{"one source": (), "mixture": mixture}.get(how, (f"data.packing={how}",)))
    opened = preflight(config)
    sent = pickle.dumps(opened)
    shared.rename(tmp_path / "away")
    ranks = {rank: received(sent) for rank in RANKS}
    for rank, inputs in ranks.items():
        assert inputs.data_identity == opened.data_identity
        assert inputs.train.sample_ids([rank]).tolist() == opened.train.sample_ids([rank]).tolist()
    (tmp_path / "away").rename(shared)
    assert not mapped(shared)
    for rank, inputs in ranks.items():
        before = mapped(shared)
        (row,) = inputs.reads.read([rank]).tokens
        most = 9 if how == "best_fit" else 2  # a stretch that is packed together; a sample may cross a border
        assert len(mapped(shared) - before) <= most
        assert row.tolist() == opened.reads.read([rank]).tokens[0].tolist()
        assert inputs.validation is not None
        assert inputs.validation.dataset.documents == opened.validation.dataset.documents  # type: ignore[union-attr]


def test_a_dataset_and_a_checkpoint_behind_urls(of_many: Callable[..., Config], shared: Path, tmp_path: Path) -> None:
    url = place(f"memory://{tmp_path.name}")
    for file in (shared / "train").iterdir():
        (url / "data" / file.name).write_bytes(file.read_bytes())
    folder = url / "checkpoints/step-00000002"
    (folder / "__0_0.distcp").write_bytes(b"1234")
    config = of_many(
        f"data.train={url}/data", f"checkpoint.dir={url}/checkpoints", f"data.cache_dir={tmp_path / 'cache'}"
    )
    identity = preflight(config).data_identity
    state = catalog.TrainingState(2, 1024, 16384)
    marker = {
        "format_version": catalog.FORMAT_VERSION,
        **vars(state),
        "adam_step": 2,
        "model": config.model.model_dump(mode="json"),
        "layout": {},
        "data": identity,
        "files": {"__0_0.distcp": 4},
    }
    catalog.publish(url / "checkpoints", folder, folder, marker)
    opened = preflight(config)
    inputs = received(pickle.dumps(opened))
    assert inputs.checkpoint is not None
    assert inputs.checkpoint == opened.checkpoint
    assert inputs.checkpoint.state == state
    assert (inputs.checkpoint.path / "__0_0.distcp").read_bytes() == b"1234"
    rows = [found.reads.read([511]).tokens.tolist() for found in (inputs, opened)]
    assert rows[0] == rows[1]
    for found in (inputs, opened):
        found.close()


def test_what_is_sent_grows_by_a_hundred_bytes_a_shard(of_many: Callable[..., Config]) -> None:
    """And not with the world: it is the same for all."""
    train = preflight(of_many("data.validation=null")).train
    assert len(pickle.dumps(train)) < 4000 + 150 * SHARDS
