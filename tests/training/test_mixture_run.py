"""Whole runs on a mixture: what each source gave and cost, and a stage that is added midway."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtrain.config import Config
from bigtrain.data.shards import open_dataset
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.errors import CheckpointError
from bigtrain.training.pretrain import pretrain


@pytest.fixture(autouse=True)
def logger(world: Any) -> Iterator[None]:
    """The package's logger, as it was afterwards; `world` does the same for the environment."""
    logger = logging.getLogger("bigtrain")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def mixed(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> Callable[..., Config]:
    """Real text, and a source of one token over and over, which is soon learned."""
    tokens = np.full(2001, 7)
    parts = [Documents(tokens, np.array([2001]), ["file"], [0], bytes=2001)]
    write_dataset(tmp_path / "dull", parts, open_dataset(dataset / "train").load_tokenizer())
    words = (
        "data.train=null",
        f"data.sources.text={{path: {dataset / 'train'}, weight: 3.0}}",
        f"data.sources.dull={{path: {tmp_path / 'dull'}, weight: 1.0}}",
        f"training.output_dir={tmp_path / 'run'}",
        "training.steps=8",
        "training.global_batch_size=4",
        "schedule.warmup_steps=0",
        "optimizer.lr=0.02",
        "checkpoint.interval=4",
        "checkpoint.keep_last=0",
    )
    return lambda *overrides: tiny(*words, *overrides)


def rows(config: Config, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.training.output_dir) / name).read_text().splitlines()]


def test_each_sources_loss_and_tokens(mixed: Callable[..., Config]) -> None:
    config = mixed("data.stages=[{step: 6, weights: {text: 1.0}}]")
    assert pretrain(config) == 0
    trained = [row for row in rows(config, "metrics.jsonl") if "loss" in row]
    length = config.training.sequence_length
    assert [row["tokens/dull"] for row in trained] == [length * step for step in (1, 2, 3, 4, 5, 6, 6, 6)]
    assert [row["tokens/text"] for row in trained] == [row["tokens"] - row["tokens/dull"] for row in trained]
    for row in trained[:6]:
        assert row["loss"] == pytest.approx(0.75 * row["loss/text"] + 0.25 * row["loss/dull"], rel=1e-5)
    assert trained[5]["loss/dull"] < trained[5]["loss/text"] - 1
    assert [row["loss/dull"] for row in trained[6:]] == [None, None]
    stages = [row for row in rows(config, "events.jsonl") if row["event"] == "stage"]
    assert [(row["step"], row["shares"]) for row in stages] == [(6, {"text": 1.0})]


def test_a_stage_that_is_added_midway_is_recorded_and_the_past_may_not_change(
    mixed: Callable[..., Config], tmp_path: Path
) -> None:
    whole = mixed("data.stages=[{step: 6, weights: {dull: 1.0}}]", f"training.output_dir={tmp_path / 'whole'}")
    assert pretrain(whole) == 0
    assert pretrain(mixed()) == 0
    run = tmp_path / "run/checkpoints"
    (run / "step-00000008/complete.json").unlink()
    changed = mixed("data.stages=[{step: 6, weights: {dull: 1.0}}]")
    assert pretrain(changed) == 0
    events = [row for row in rows(changed, "events.jsonl") if row["event"] in ("resume", "mixture", "stage")]
    assert [(row["event"], row["step"]) for row in events] == [("resume", 4), ("mixture", 4), ("stage", 6)]
    one, other = (
        [(row["step"], row["loss"], row["tokens/dull"]) for row in rows(config, "metrics.jsonl")]
        for config in (whole, changed)
    )
    assert one == other
    with pytest.raises(CheckpointError, match=r"the shares of data\.sources and data\.stages until then was"):
        pretrain(mixed("data.stages=[{step: 3, weights: {dull: 1.0}}]"))
