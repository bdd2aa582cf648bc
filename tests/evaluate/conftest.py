"""Random models that read and write characters, as a Hugging Face folder and as a run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml
from transformers import PreTrainedTokenizerFast

from bigtrain.config import load_config

END = 94
"""`~` ends a document."""


@pytest.fixture(scope="session")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of printable ASCII."""
    folder = tmp_path_factory.mktemp("characters")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({chr(32 + i): i for i in range(95)}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    words.decoder = tokenizers.decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="~", bos_token="~").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_run(characters: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a run's folder with a checkpoint, given a `model` section, and the seed of fresh weights
    or the weights by their global names."""

    def make(seed: int = 1, weights: dict[str, Any] | None = None, tokenizer: Path = characters, **model: Any) -> Path:
        from bigtrain.checkpoint import store
        from bigtrain.checkpoint.catalog import TrainingState
        from bigtrain.checkpoint.holdings import holdings
        from bigtrain.data.tokenizer import copy_tokenizer, load_tokenizer
        from bigtrain.parallel import topology
        from bigtrain.parallel.engine import Engine

        run = tmp_path_factory.mktemp("run")
        shape = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = {
            "model": {**shape, "max_position_embeddings": 64, "initializer_range": 0.4, **model},
            "data": {"train": "data"},
            "training": {
                "output_dir": str(run),
                "steps": 1,
                "global_batch_size": 1,
                "sequence_length": 16,
                "seed": seed,
            },
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "tokenizer").mkdir()
        copy_tokenizer(load_tokenizer(tokenizer), run / "tokenizer")
        environment = dict(os.environ)
        loaded = load_config(run / "config.yaml", ["training.precision=fp32"])
        engine = Engine(loaded, topology.start_processes(loaded))
        for held in holdings(engine, to_save=False) if weights else []:
            if held.name.startswith("model."):
                box = tuple(slice(at, at + size) for at, size in zip(held.offset, held.shape, strict=True))
                held.values.copy_(weights[held.name.removeprefix("model.")][box])
        store.save(run / "checkpoints", engine, TrainingState(1, 0, 0), {}, 1)
        engine.close()
        topology.stop_processes()
        os.environ.clear()
        os.environ.update(environment)
        return run

    return make
