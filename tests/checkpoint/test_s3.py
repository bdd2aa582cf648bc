"""Checkpoints in a bucket, on a server that speaks S3's API and is a process of its own."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from s3fs import S3FileSystem
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.places import place
from bigtrain.config import Config
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.errors import CheckpointError, ConfigError
from bigtrain.training.preflight import preflight
from bigtrain.training.pretrain import pretrain

BUCKET = "s3://checkpoints/run"


@pytest.fixture
def bucket(s3: S3FileSystem) -> Iterator[S3FileSystem]:
    """An empty bucket's client."""
    s3.mkdir("checkpoints")
    yield s3
    s3.rm("checkpoints", recursive=True)


@pytest.fixture
def config(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> Config:
    return tiny(
        f"data.train={dataset / 'train'}",
        f"data.validation={dataset / 'validation'}",
        f"training.output_dir={tmp_path / 'run'}",
        f"checkpoint.dir={BUCKET}",
        "checkpoint.interval=1",
        "checkpoint.keep_last=2",
        "training.steps=5",
    )


@pytest.fixture(autouse=True)
def logger(world: Any) -> Iterator[None]:
    logger = logging.getLogger("bigtrain")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def losses(config: Config) -> list[float]:
    rows = map(json.loads, (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def steps(bucket: S3FileSystem) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in bucket.ls("checkpoints/run") if "step-" in path)


def stopped_after(config: Config, steps: int) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})


def test_a_run_in_a_bucket(bucket: S3FileSystem, config: Config, tmp_path: Path) -> None:
    """Saved and pruned; a save that died before its marker is passed over, removed and done again; then exported."""
    constant = config.model_copy(update={"schedule": config.schedule.model_copy(update={"name": "constant"})})
    assert pretrain(constant) == 0
    whole = losses(constant)
    assert steps(bucket) == ["step-00000004", "step-00000005"]
    assert bucket.cat("checkpoints/run/latest") == b"step-00000005"
    assert not (tmp_path / "run/checkpoints").exists()
    event = json.loads((tmp_path / "run/events.jsonl").read_text().splitlines()[1])
    assert (event["event"], event["path"]) == ("checkpoint", f"{BUCKET}/step-00000001")

    bucket.rm("checkpoints/run/step-00000005/complete.json")
    bucket.pipe("checkpoints/run/step-00000003/__0_0.distcp", b"a removal that was cut short")
    newest = catalog.newest(place(BUCKET))
    assert newest is not None
    assert newest.state.step == 4
    assert pretrain(constant) == 0
    assert losses(constant) == whole
    assert steps(bucket) == ["step-00000004", "step-00000005"]

    made = convert_to_hf(tmp_path / "run", tmp_path / "hf", verify=True)
    assert made.step == 5
    again = convert_to_hf(place(f"{BUCKET}/step-00000004"), tmp_path / "hf4", tokenizer=tmp_path / "run/tokenizer")
    assert again.step == 4

    reader = FsspecReader(f"{BUCKET}/step-00000005")
    name = "optimizer.exp_avg.decoder.final_layernorm.weight"
    tensors = {name: torch.full((32,), torch.nan)}
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    assert tensors[name].isfinite().all()


def test_damage_in_a_bucket_is_told(bucket: S3FileSystem, config: Config) -> None:
    assert pretrain(stopped_after(config, 1)) == 0
    path = "checkpoints/run/step-00000001/__0_0.distcp"
    content = bytearray(bucket.cat(path))
    content[len(content) // 2] ^= 1
    bucket.pipe(path, bytes(content))
    with pytest.raises(CheckpointError, match=f"{BUCKET}/step-00000001/__0_0.distcp is damaged between the bytes"):
        pretrain(config)
    bucket.pipe(path, bytes(content[:-5]))
    with pytest.raises(CheckpointError, match=rf"{BUCKET}/\S+ has {len(content) - 5} bytes, {len(content)} were"):
        preflight(config)
    bucket.rm(path)
    with pytest.raises(CheckpointError, match=f"{BUCKET}/step-00000001/__0_0.distcp is missing"):
        preflight(config)


def test_a_bucket_that_is_not_there_is_told_before_training(bucket: S3FileSystem, config: Config) -> None:
    elsewhere = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"dir": "s3://none/run"})})
    with pytest.raises(ConfigError, match=r"checkpoint\.dir s3://none/run cannot be written: .*bucket does not exist"):
        preflight(elsewhere)
    assert not (Path(config.training.output_dir) / "metrics.jsonl").exists()
