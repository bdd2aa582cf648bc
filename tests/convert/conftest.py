"""A run's folder around a random model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from random_models import LIBRARY, megatron_weights, model_section, write_checkpoint
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bigtrain.prepare.train_tokenizer import train_byte_level, train_sentencepiece


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [(LIBRARY / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "ast", "heapq", "csv")]
    return train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 440)


@pytest.fixture(scope="session")
def hf_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Of 440 tokens, with a template for chats."""
    texts = [(LIBRARY / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "ast")]
    path = train_byte_level(texts, tmp_path_factory.mktemp("byte_level"), 440)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|endoftext|>")
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


@pytest.fixture
def make_run(tmp_path: Path, tokenizer_path: Path) -> Callable[..., Path]:
    """A function that writes a run's folder around a model, with overrides of its `model` section."""

    def make(model: LlamaForCausalLM, step: int = 7, validation: Path | None = None, **changed: Any) -> Path:
        run = tmp_path / "run"
        section = {**model_section(model.config), **changed}
        write_checkpoint(run / "checkpoints", step, megatron_weights(model), section)
        (run / "tokenizer").mkdir(exist_ok=True)
        (run / "tokenizer" / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
        config = {
            "model": section,
            "data": {"train": "data", "validation": str(validation) if validation else None},
            "training": {"output_dir": str(run), "steps": 9, "global_batch_size": 2, "sequence_length": 64},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        return run

    return make
