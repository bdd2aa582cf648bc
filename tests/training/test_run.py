"""Whole runs in this process: their records, and that a crash or a signal leaves no trace in the curve."""

import json
import logging
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtrain.checkpoint import catalog
from bigtrain.config import Config, load_config
from bigtrain.training.pretrain import pretrain

CLOCKED = {"step_seconds", "data_seconds", "tokens_per_second", "memory_bytes", "time"}
CLOCKED |= {"stalled_seconds", "waited_seconds", "written_seconds"}


@pytest.fixture(autouse=True)
def logger(world: Any) -> Iterator[logging.Logger]:
    """The package's logger, as it was afterwards; `world` does the same for the environment."""
    logger = logging.getLogger("bigtrain")
    before = logger.handlers, logger.level, logger.propagate
    yield logger
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def config(run_config: Callable[..., Config], dataset: Path) -> Config:
    """Six steps with everything that a resume could get wrong."""
    return run_config(
        f"data.validation={dataset / 'validation'}",
        "data.mask_document_boundaries=true",
        "model.hidden_dropout=0.1",
        "model.attention_dropout=0.1",
        "schedule.warmup_steps=2",
        "optimizer.lr=0.01",
        "training.steps=6",
        "training.validation_interval=4",
        "training.validation_samples=5",
        "checkpoint.interval=2",
        "checkpoint.keep_last=0",
        "checkpoint.async_save=false",  # so that a checkpoint's event comes before the next step's
    )


def rows(config: Config, name: str) -> list[dict[str, Any]]:
    """The rows of a record, without what a clock decides."""
    lines = (Path(config.training.output_dir) / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKED} for line in lines]


def test_a_run_leaves_what_it_promises(config: Config, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(config) == 0
    run = Path(config.training.output_dir)
    trained = [row for row in rows(config, "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in trained] == [64, 128, 192, 256, 320, 384]
    assert [row["learning_rate"] for row in trained[:2]] == [0.005, 0.01]
    assert trained[-1]["learning_rate"] == pytest.approx(0.001)
    assert {row["model_flops_utilization"] for row in trained} == {None}
    validated = [row for row in rows(config, "metrics.jsonl") if "validation_loss" in row]
    assert [row["step"] for row in validated] == [4, 6]
    assert [(row["event"], row["step"]) for row in rows(config, "events.jsonl")] == [
        ("start", 0),
        ("checkpoint", 2),
        ("evaluate", 4),
        ("checkpoint", 4),
        ("evaluate", 6),
        ("checkpoint", 6),
        ("stop", 6),
    ]
    assert load_config(run / "config.yaml") == config
    assert (run / "tokenizer/tokenizer.model").read_bytes() == (dataset / "train/tokenizer.model").read_bytes()
    newest = catalog.newest(run / "checkpoints")
    assert newest is not None
    assert newest.state == catalog.TrainingState(step=6, position=24, tokens=384)
    assert "step 6/6" in capsys.readouterr().out
    assert "checkpoint at step 6" in (run / "logs/rank-00000.log").read_text()


def test_after_a_crash_the_steps_since_the_checkpoint_are_done_again(config: Config) -> None:
    """The crash leaves rows that no checkpoint knows, one of them cut short, and a save begun."""
    assert pretrain(config) == 0
    whole = rows(config, "metrics.jsonl")
    run = Path(config.training.output_dir)
    shutil.rmtree(run / "checkpoints/step-00000006")
    (run / "checkpoints/.step-00000006.writing").mkdir()
    for name in ("metrics.jsonl", "events.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 7')
    assert pretrain(config) == 0
    assert rows(config, "metrics.jsonl") == whole
    resumed = rows(config, "events.jsonl")[7]
    assert (resumed["event"], resumed["step"], resumed["saved_with"]) == ("resume", 4, resumed["layout"])
    assert [p.name for p in (run / "checkpoints").glob(".*")] == []


def test_saving_in_the_background_changes_nothing(config: Config, tmp_path: Path) -> None:
    """The curve and the checkpoints are the same to the last bit; each has its event, with the step it is of."""
    elsewhere = config.training.model_copy(update={"output_dir": str(tmp_path / "beside")})
    in_background = config.checkpoint.model_copy(update={"async_save": True, "keep_every": 4, "keep_last": 1})
    beside = config.model_copy(update={"training": elsewhere, "checkpoint": in_background})
    assert pretrain(config) == pretrain(beside) == 0
    assert rows(beside, "metrics.jsonl") == rows(config, "metrics.jsonl")
    events = [row for row in rows(beside, "events.jsonl") if row["event"] == "checkpoint"]
    assert [(row["step"], row["path"]) for row in events] == [(n, f"checkpoints/step-0000000{n}") for n in (2, 4, 6)]
    assert sorted(path.name for path in (tmp_path / "beside/checkpoints").iterdir()) == [
        "latest",
        "step-00000004",  # for ever
        "step-00000006",
    ]
    for name in ("step-00000004", "step-00000006"):
        one, other = tmp_path / "run/checkpoints" / name, tmp_path / "beside/checkpoints" / name
        assert (one / "__0_0.distcp").read_bytes() == (other / "__0_0.distcp").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_as_if_it_never_came(
    number: signal.Signals, config: Config, tmp_path: Path, logger: logging.Logger
) -> None:
    elsewhere = config.training.model_copy(update={"output_dir": str(tmp_path / "whole")})
    whole = config.model_copy(update={"training": elsewhere})
    assert pretrain(whole) == 0

    def strike(record: logging.LogRecord) -> bool:
        """The signal comes in the middle of the run, right after the checkpoint of step 2."""
        if record.getMessage().startswith("checkpoint at step 2"):
            signal.raise_signal(number)
        return True

    logger.addFilter(strike)
    assert pretrain(config) == 75
    logger.removeFilter(strike)
    assert [(row["event"], row["step"]) for row in rows(config, "events.jsonl")][-2:] == [
        ("checkpoint", 3),
        ("preempt", 3),
    ]
    assert rows(config, "events.jsonl")[-1]["signal"] == number.name
    assert pretrain(config) == 0
    assert rows(config, "metrics.jsonl") == rows(whole, "metrics.jsonl")


def test_a_finished_run_is_left_alone(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(config) == 0
    before = rows(config, "metrics.jsonl"), rows(config, "events.jsonl")
    capsys.readouterr()
    assert pretrain(config) == 0
    assert (rows(config, "metrics.jsonl"), rows(config, "events.jsonl")) == before
    assert "raise training.steps to go on" in capsys.readouterr().out


def test_rows_can_be_rarer_than_steps(run_config: Callable[..., Config]) -> None:
    """Every third, and the last; validation waits for the end, and there is no checkpoint but the last."""
    config = run_config("logging.interval=3", "training.steps=8", "checkpoint.interval=0")
    assert pretrain(config) == 0
    assert [row["step"] for row in rows(config, "metrics.jsonl")] == [3, 6, 8]
    checkpoints = Path(config.training.output_dir) / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["latest", "step-00000008"]


def test_experts_add_their_routers_losses_to_the_rows(run_config: Callable[..., Config]) -> None:
    config = run_config("model.num_experts=4", "training.steps=2")
    assert pretrain(config) == 0
    for row in rows(config, "metrics.jsonl"):
        assert 1 <= row["router_aux_loss"] <= 2, "between all alike and all to the same two of four"
        assert row["router_z_loss"] == pytest.approx(math.log(4) ** 2, rel=0.03), "the initial router is all but even"
