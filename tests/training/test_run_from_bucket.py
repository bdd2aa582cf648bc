"""A whole run whose data lies in a bucket: the same curve as from disk, through a small cache, and resumed."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3fs import S3FileSystem

from bigtrain.config import Config
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.data.shards import open_dataset
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.report.build import report
from bigtrain.report.trace import trace
from bigtrain.training.pretrain import pretrain

WINDOW = 4000


@pytest.fixture(autouse=True)
def logger(world: Any) -> Iterator[None]:
    """The package's logger, as it was afterwards; `world` does the same for the environment."""
    logger = logging.getLogger("bigtrain")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    """The shared text in shards of 2,000 tokens."""
    whole = open_dataset(dataset / "train")
    documents = [document for document in map(whole.document, range(whole.documents)) if len(document.tokens) < 2000]
    parts = [
        Documents(d.tokens, np.array([len(d.tokens)]), [d.source], [d.position], bytes=len(d.tokens)) for d in documents
    ]
    write_dataset(tmp_path / "train", parts, whole.load_tokenizer(), tokens_per_shard=2000)
    return tmp_path / "train"


@pytest.fixture
def bucket(s3: S3FileSystem, folder: Path, dataset: Path) -> Iterator[str]:
    s3.mkdir("texts")
    s3.put(str(folder), "texts/train", recursive=True)
    s3.put(str(dataset / "validation"), "texts/validation", recursive=True)
    yield "s3://texts"
    s3.rm("texts", recursive=True)


def curve(config: Config) -> list[tuple[Any, ...]]:
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [tuple(json.loads(line).get(key) for key in ("step", "loss", "validation_loss")) for line in lines]


def test_a_run_from_a_bucket_is_the_run_from_disk(
    bucket: str, folder: Path, dataset: Path, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    def config(name: str, train: object, validation: object, *more: str) -> Config:
        return tiny(
            f"data.train={train}",
            f"data.validation={validation}",
            f"data.shuffle_window={WINDOW}",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"training.output_dir={tmp_path / name}",
            "training.steps=6",
            "training.validation_samples=4",
            "checkpoint.interval=3",
            "checkpoint.keep_last=0",
            *more,
        )

    local = config("local", folder, dataset / "validation")
    assert pretrain(local) == 0
    whole = config("whole", f"{bucket}/train", f"{bucket}/validation", "data.cache_bytes=200000")
    assert pretrain(whole) == 0
    assert curve(whole) == curve(local)
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert cached > 0
    (tmp_path / "whole/checkpoints/step-00000006/complete.json").unlink()
    assert pretrain(whole) == 0
    assert curve(whole) == curve(local)
    assert (tmp_path / "whole/tokenizer/tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    assert [(t.source, t.text) for t in trace(tmp_path / "whole", 2)] == [
        (t.source, t.text) for t in trace(tmp_path / "local", 2)
    ]
    assert report(tmp_path / "whole").page.is_file()
    made = convert_to_hf(tmp_path / "whole", tmp_path / "hf", verify=True)
    assert made.parity is not None
