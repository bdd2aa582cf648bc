"""Checkpoints of one process: what is written, what is picked, what is refused, and that all comes back."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from bigtrain.checkpoint import catalog, store
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.checkpoint.holdings import holdings
from bigtrain.config import Config
from bigtrain.errors import CheckpointError
from bigtrain.parallel.engine import Engine
from bigtrain.parallel.topology import Layout

DATA = {"train": "a fingerprint", "seed": 1234}
STATE = TrainingState(step=2, position=8, tokens=128)


def plainly(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by torch's own reader and no process group."""
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.full(entry.size, torch.nan) for name, entry in stored.items()}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return tensors


def held(engine: Engine) -> dict[str, torch.Tensor]:
    """The whole float32 weights and moments of a world of one process."""
    tensors: dict[str, torch.Tensor] = {}
    for holding in holdings(engine, to_save=False):
        whole = tensors.setdefault(holding.name, torch.full(holding.global_shape, torch.nan))
        whole[tuple(slice(o, o + n) for o, n in zip(holding.offset, holding.shape, strict=True))] = holding.values
    return tensors


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def trained(world: Layout, tiny: Callable[..., Config]) -> Engine:
    """An engine after two steps."""
    from bigtrain.data.loader import CausalBatch

    config = tiny()
    engine = Engine(config, world)
    tokens = torch.arange(68).view(4, 17) * 7 % 512
    batch = CausalBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(4, 16), torch.arange(16).expand(4, -1))
    for step in range(2):
        engine.train_step([batch], 64, 1e-2, step)
    return engine


@pytest.fixture(scope="module")
def original(trained: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store.save(tmp_path_factory.mktemp("original"), trained, STATE, DATA, keep_last=0)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A folder with the checkpoints of the steps 1 and 2, to be spoilt."""
    shutil.copytree(original, tmp_path / "step-00000001")
    shutil.copytree(original, tmp_path / "step-00000002")
    return tmp_path


def test_the_marker_tells_where_the_run_stands(original: Path, trained: Engine) -> None:
    checkpoint = catalog.read(original)
    assert checkpoint.state == STATE
    assert checkpoint.adam_step == 2
    assert checkpoint.data == DATA
    assert checkpoint.model == trained.config.model.model_dump(mode="json")
    assert checkpoint.layout["zero_stage"] == 1
    assert not [key for key in checkpoint.layout if "rank" in key]
    assert (original.parent / "latest").read_text() == original.name
    assert sorted(p.name for p in original.parent.iterdir()) == ["latest", "step-00000002"]


def test_plain_torch_reads_it(original: Path, trained: Engine) -> None:
    tensors = plainly(original)
    assert_same(tensors, held(trained))
    names = dict(trained.chunks[0].module.named_parameters())
    assert torch.equal(
        tensors["model.embedding.word_embeddings.weight"], names["embedding.word_embeddings.weight"].detach()
    )
    stacked = tensors["model.decoder.layers.mlp.linear_fc2.weight"]
    for layer in range(2):
        assert torch.equal(stacked[layer], names[f"decoder.layers.{layer}.mlp.linear_fc2.weight"].detach())
    assert tensors["optimizer.exp_avg.decoder.layers.mlp.linear_fc2.weight"].any()


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.zero_stage=0"],
        ["parallel.zero_stage=1"],
        ["parallel.zero_stage=2"],
        ["parallel.zero_stage=3"],
        ["parallel.zero_stage=2", "parallel.offload=optimizer"],
        ["parallel.zero_stage=3", "parallel.offload=optimizer"],
        ["parallel.zero_stage=1", "training.precision=bf16"],
        ["parallel.zero_stage=3", "training.precision=bf16"],
    ],
    ids=" ".join,
)
def test_a_load_fills_everything_bit_for_bit(
    original: Path,
    overrides: list[str],
    tiny: Callable[..., Config],
    engine_of: Callable[[Config], Engine],
    tmp_path: Path,
) -> None:
    """Into an engine of another seed, and from there to a new checkpoint."""
    engine = engine_of(tiny("training.seed=99", *overrides))
    assert not torch.equal(held(engine)["model.output_layer.weight"], plainly(original)["model.output_layer.weight"]), (
        "the other seed made other weights"
    )
    store.load(catalog.read(original), engine)
    assert_same(held(engine), plainly(original))
    again = store.save(tmp_path, engine, STATE, DATA, keep_last=0)
    assert_same(plainly(again), plainly(original))
    assert catalog.read(again).adam_step == 2


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_goes_on_as_if_never_stopped(
    stage: int,
    tiny: Callable[..., Config],
    engine_of: Callable[[Config], Engine],
    batches_of: Callable[..., list],
    tmp_path: Path,
) -> None:
    words = [f"parallel.zero_stage={stage}", "model.hidden_dropout=0.1", "model.attention_dropout=0.1"]
    config = tiny(*words)
    one, other = engine_of(config), engine_of(tiny(*words, "model.initializer_range=0.5"))
    one.train_step(batches_of(config, 0), 64, 1e-2, 0)
    store.load(catalog.read(store.save(tmp_path, one, STATE, DATA, keep_last=0)), other)
    for step in (1, 2):
        went_on = one.train_step(batches_of(config, step), 64, 1e-2, step)
        resumed = other.train_step(batches_of(config, step), 64, 1e-2, step)
        assert (went_on.loss, went_on.grad_norm) == (resumed.loss, resumed.grad_norm)
    assert_same(held(one), held(other))


def test_old_ones_are_removed_after_the_new_one_is_complete(trained: Engine, tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        store.save(tmp_path, trained, replace(STATE, step=step), DATA, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000003", "step-00000010"]
    assert (tmp_path / "latest").read_text() == "step-00000010"
    newest = catalog.newest(tmp_path)
    assert newest is not None
    assert newest.state.step == 10


def test_a_step_can_be_saved_again(trained: Engine, folder: Path) -> None:
    """A run that was set back meets the folders of its earlier life, and what a crash left of a save."""
    (folder / ".step-00000001.writing").mkdir()
    (folder / ".step-00000001.writing" / "rubbish").write_text("")
    (folder / ".step-00000009.writing").mkdir()
    store.save(folder, trained, replace(STATE, step=1, position=77), DATA, keep_last=0)
    assert catalog.read(folder / "step-00000001").state.position == 77
    assert not (folder / "step-00000001" / "rubbish").exists()
    assert list(folder.glob(".*")) == [], "nor of any other"


def test_a_removal_cut_short_leaves_no_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dying after the first file is gone, whichever it is."""

    def die(path: Path) -> None:
        next(path.glob("*.distcp")).unlink(missing_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        catalog.prune(folder, keep_last=1)
    monkeypatch.undo()
    shutil.rmtree(folder / "step-00000002")
    assert catalog.newest(folder) is None


def test_nothing_there(original: Path, tmp_path: Path) -> None:
    """Neither in a folder with a save that ended just before its rename."""
    shutil.copytree(original, tmp_path / ".step-00000002.writing")
    assert catalog.newest(tmp_path) is None
    assert catalog.newest(tmp_path / "none") is None


def test_the_incomplete_are_never_picked(folder: Path) -> None:
    shutil.copytree(folder / "step-00000001", folder / "step-00000003")
    (folder / "step-00000003" / "complete.json").unlink()
    shutil.copytree(folder / "step-00000001", folder / ".step-00000004.writing")
    (folder / "latest").write_text("step-00000003")
    newest = catalog.newest(folder)
    assert newest is not None
    assert newest.path == folder / "step-00000002"
    with pytest.raises(CheckpointError, match=r"step-00000003 is not a complete checkpoint: it has no complete\.json"):
        catalog.read(folder / "step-00000003")


def damaged(path: Path, how: str) -> str:
    """Damage the checkpoint; what the message must say."""
    part, marker = path / "__0_0.distcp", path / "complete.json"
    if how == "missing":
        part.unlink()
        return r"step-00000002/__0_0\.distcp is missing"
    if how == "truncated":
        size = part.stat().st_size
        part.write_bytes(part.read_bytes()[:100])
        return rf"step-00000002/__0_0\.distcp has 100 bytes, {size} were written"
    if how == "no metadata":
        (path / ".metadata").unlink()
        return r"step-00000002/\.metadata is missing"
    if how == "marker not JSON":
        marker.write_text("{")
        return r"step-00000002/complete\.json is damaged"
    if how == "marker of nothing":
        marker.write_text("null")
        return r"step-00000002/complete\.json is damaged"
    content = json.loads(marker.read_text())
    if how == "newer format":
        marker.write_text(json.dumps(content | {"format_version": 2}))
        return "step-00000002 has format version 2; this version of bigtrain reads 1"
    del content["position"]
    marker.write_text(json.dumps(content))
    return r"step-00000002/complete\.json is damaged: KeyError\('position'\)"


@pytest.mark.parametrize(
    "how",
    ["missing", "truncated", "no metadata", "marker not JSON", "marker of nothing", "newer format", "no position"],
)
def test_damage_is_told_with_the_files_name(folder: Path, how: str) -> None:
    message = damaged(folder / "step-00000002", how)
    with pytest.raises(CheckpointError, match=message):
        catalog.newest(folder)
    shutil.rmtree(folder / "step-00000002")  # what the message says
    assert catalog.newest(folder) is not None


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_in_the_list_of_tensors_is_told(folder: Path, trained: Engine) -> None:
    """Also where the marker has no checksum of it, and torch cannot make sense of the list."""
    path = folder / "step-00000002" / ".metadata"
    flip(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"step-00000002/\.metadata is damaged: its checksum.*remove its folder"):
        catalog.newest(folder)
    path.write_bytes(bytes(path.stat().st_size))
    marker = json.loads((path.parent / "complete.json").read_text())
    del marker["metadata_crc32"]
    (path.parent / "complete.json").write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match=rf"{path} is damaged: "):
        store.load(catalog.read(path.parent), trained)


def test_a_flipped_bit_anywhere_in_the_tensors_is_told(folder: Path, trained: Engine) -> None:
    """In numbers, names and padding, the first byte and the last; with the file's name and where in it."""
    path = folder / "step-00000002" / "__0_0.distcp"
    checkpoint = catalog.read(path.parent)
    size = path.stat().st_size
    for position in (0, size // 7, size // 2, size // 2 + 40, size - 1):
        flip(path, position)
        with pytest.raises(
            CheckpointError, match=rf"cannot load .*{path} is damaged between the bytes (\d+) and (\d+)"
        ) as told:
            store.load(checkpoint, trained)
        begin, end = re.findall(r"between the bytes (\d+) and (\d+)", str(told.value))[0]
        assert int(begin) <= position < int(end)
        flip(path, position)
    store.load(checkpoint, trained)


def test_a_file_that_lost_its_end_while_it_was_picked_is_told(folder: Path, trained: Engine) -> None:
    path = folder / "step-00000002" / "__0_0.distcp"
    checkpoint = catalog.read(path.parent)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=rf"{path} is damaged between"):
        store.load(checkpoint, trained)


def test_torchs_own_tools_still_read_it(original: Path, trained: Engine, tmp_path: Path) -> None:
    """The checksums are where torch's planners keep notes of their own."""
    dcp_to_torch_save(original, tmp_path / "whole.pt")
    assert_same(torch.load(tmp_path / "whole.pt"), held(trained))


def test_a_tensor_with_a_hole_is_refused(folder: Path, trained: Engine) -> None:
    """Torch's own planner would leave the memory as it was."""
    path = folder / "step-00000002"
    metadata = pickle.loads((path / ".metadata").read_bytes())
    name = "optimizer.exp_avg.decoder.layers.mlp.linear_fc2.weight"
    metadata.state_dict_metadata[name].chunks.pop()
    checkpoint = catalog.read(path)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=f"holds only a part of {name}"):
        store.load(checkpoint, trained)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.linear_bias=true", r"has no tensor model\.decoder\.layers\.\S+\.bias, which the model needs"),
        (
            "model.vocab_size=640",
            r"model\.(embedding\.word_embeddings|output_layer)\.weight is \(512, 32\) in the checkpoint "
            r"and \(640, 32\) in the model",
        ),
        ("model.num_hidden_layers=4", r"\S+ is \(2, \S+.* in the checkpoint and \(4, .* in the model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    original: Path,
    override: str,
    message: str,
    tiny: Callable[..., Config],
    engine_of: Callable[[Config], Engine],
) -> None:
    with pytest.raises(CheckpointError, match=message):
        store.load(catalog.read(original), engine_of(tiny(override)))
