"""The validation loss: every window once, the same number however it is cut into batches."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from bigtrain.config import Config
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
from bigtrain.parallel.engine import Engine
from bigtrain.prepare.prepare import prepare
from bigtrain.training.batches import batch_source
from bigtrain.training.inputs import open_inputs
from bigtrain.training.validation import validate

TEXT = "def held_out(text: str) -> float:\n    return math.log(len(text))\n" * 6


@pytest.fixture(scope="module")
def folder(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of two documents."""
    folder = tmp_path_factory.mktemp("small")
    for name, text in (("a.py", TEXT), ("b.py", TEXT[40:])):
        (folder / name).write_text(text)
    prepare([folder / "a.py", folder / "b.py"], folder / "data", tokenizer, workers=1)
    return folder / "data/train"


@pytest.fixture(scope="module")
def samples(folder: Path) -> Samples:
    samples = Samples(open_dataset(folder), 16, shuffle=False)
    assert all(len(samples) % size for size in (4, 6, 64)), "so that the last batch is a partial one"
    return samples


def by_hand(engine: Engine, folder: Path, count: int) -> float:
    """Mean loss over the first windows, read with pyarrow, one at a time."""
    table = pa.ipc.open_file(pa.memory_map(str(folder / "shard-00000.arrow"))).read_all()
    tokens = torch.from_numpy(table["tokens"].combine_chunks().values.to_numpy().astype(np.int64))
    module = engine.chunks[0].module.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, 16 * count, 16):
            logits = module(tokens[None, start : start + 16], torch.arange(16)[None], None)[0]
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[start + 1 : start + 17]))
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize(("batch", "micro"), [(1, 1), (4, 1), (4, 4), (6, 2), (64, 8)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_it_is_the_mean_over_the_windows_whatever_the_batches(
    batch: int,
    micro: int,
    count: int,
    folder: Path,
    samples: Samples,
    tiny: Callable[..., Config],
    engine_of: Callable[[Config], Engine],
) -> None:
    config = tiny(
        f"training.global_batch_size={batch}",
        f"training.micro_batch_size={micro}",
        f"training.validation_samples={count}",
        "data.validation=x",
        "model.hidden_dropout=0.5",
        "model.initializer_range=0.3",
    )
    engine = engine_of(config)
    found = validate(engine, config, samples)["validation_loss"]
    assert found == pytest.approx(by_hand(engine, folder, count or len(samples)), rel=1e-5)


def test_more_samples_than_there_are_means_all(
    samples: Samples, tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    engine = engine_of(tiny())
    few, all_of_them = (f"training.validation_samples={n}" for n in (10_000, 0))
    assert validate(engine, tiny(few), samples) == validate(engine, tiny(all_of_them), samples)


@pytest.mark.parametrize(("batch", "micro", "count"), [(4, 2, 0), (6, 3, 5), (64, 8, 0)])
def test_of_a_t5_it_is_the_mean_over_all_that_is_said(
    batch: int, micro: int, count: int, folder: Path, tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    """Each target weighs the same, however many its sample has."""
    words = ["model.architecture=t5", "model.position_embedding=relative", "model.num_key_value_heads=null"]
    places = [f"data.train={folder}", f"data.validation={folder}", "data.objective=prefix_lm"]
    sizes = [
        f"training.{k}={v}" for k, v in zip(("global_batch_size", "micro_batch_size"), (batch, micro), strict=True)
    ]
    config = tiny(*words, *places, *sizes, f"training.validation_samples={count}", "model.hidden_dropout=0.5")
    inputs, engine = open_inputs(config), engine_of(config)
    assert inputs.validation is not None
    found = validate(engine, config, inputs.validation, inputs.reads_validation)
    assert set(found) == {"validation_loss"}
    one_by_one = batch_source(inputs.reads_validation, "blocks").batches(np.arange(count or len(inputs.validation)), 1)
    said = sum(sample.loss_mask.sum().item() for sample in one_by_one)
    total = sum(engine.evaluate([sample]).item() for sample in one_by_one)
    assert found["validation_loss"] == pytest.approx(total / said, rel=1e-5)


def test_bits_per_byte_are_what_the_text_would_take(
    folder: Path, samples: Samples, tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    config = tiny()
    found = validate(engine_of(config), config, samples)
    tokens = json.loads((folder / "dataset.json").read_text())["tokens"]
    text_bytes = len(TEXT) + len(TEXT[40:])
    bits = found["validation_loss"] / math.log(2) * tokens
    assert found["validation_bits_per_byte"] == pytest.approx(bits / text_bytes)
