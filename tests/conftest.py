"""What several rooms' tests share: real text as a dataset, a tiny model, a world of one process."""

import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from bigtrain.config import Config, load_config

if TYPE_CHECKING:  # torch takes seconds, and some rooms' tests do without
    from bigtrain.data.loader import CausalBatch
    from bigtrain.parallel.engine import Engine
    from bigtrain.parallel.topology import Layout

pytest_plugins = ["texts", "s3"]

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # 2 cores, often several processes
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled; a fifth of a process's start is its import

settings.register_profile("bigtrain", deadline=None)
settings.load_profile("bigtrain")

TINY = """
model:
  vocab_size: 512
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  intermediate_size: 48
  max_position_embeddings: 64
data: {train: data/train}
training: {output_dir: run, steps: 4, global_batch_size: 4, micro_batch_size: 2, sequence_length: 16, precision: fp32}
logging: {wandb: disabled}
"""

Tiny = Callable[..., Config]
Batches = Callable[..., "list[CausalBatch]"]
EngineOf = Callable[[Config], "Engine"]


@pytest.fixture(scope="session")
def corpus() -> list[Path]:
    """Some of Python's own library, about half a megabyte."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return [library / name for name in ("asyncio", "json", "email", "typing.py", "argparse.py", "datetime.py")]


@pytest.fixture(scope="session")
def tokenizer(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of 512 pieces."""
    from bigtrain.prepare.text import read_documents
    from bigtrain.prepare.train_tokenizer import train_sentencepiece

    output = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_sentencepiece(read_documents(corpus, pattern="*.py", max_bytes=500_000), output, 512)


@pytest.fixture(scope="session")
def dataset(corpus: list[Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets `train` and `validation`."""
    from bigtrain.prepare.prepare import prepare

    output = tmp_path_factory.mktemp("dataset") / "data"
    prepare(corpus, output, tokenizer, pattern="*.py", validation_fraction=0.1, workers=1)
    return output


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A configuration that trains in milliseconds, given overrides such as "model.qkv_bias=true"."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture(scope="module")
def world(tiny: Tiny) -> Iterator["Layout"]:
    """The process groups of a world of this one process; what they leave in the environment is taken back."""
    from bigtrain.parallel import topology

    environment = dict(os.environ)
    yield topology.start_processes(tiny())
    topology.stop_processes()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def engine_of(world: "Layout") -> Iterator[EngineOf]:
    """Builds engines, and closes them when the test ends."""
    from dataclasses import replace

    from bigtrain.parallel.engine import Engine

    engines = []

    def build(config: Config) -> "Engine":
        engines.append(Engine(config, replace(world, zero_stage=config.parallel.zero_stage)))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


@pytest.fixture
def batches_of() -> Batches:
    """Micro-batches of random tokens for one step of a configuration, always the same for a seed."""
    import torch

    from bigtrain.data.loader import CausalBatch

    def make(config: Config, seed: int = 0) -> "list[CausalBatch]":
        t = config.training
        size = (t.global_batch_size, t.sequence_length + 1)
        tokens = torch.randint(config.model.vocab_size, size, generator=torch.Generator().manual_seed(seed))
        return [
            CausalBatch(part[:, :-1], part[:, 1:], torch.ones(len(part), t.sequence_length), positions)
            for part in tokens.split(t.micro_batch_size)
            for positions in [torch.arange(t.sequence_length).expand(len(part), -1)]
        ]

    return make
