"""A run's checkpoint as a model that continues text: our own model, in any tensor and pipeline layout."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoTokenizer

from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.config import ParallelConfig
from bigtrain.convert.own_model import own_model
from bigtrain.convert.source import find_tokenizer, model_config, run_folder
from bigtrain.errors import CheckpointError, ConfigError
from bigtrain.evaluate.beams import Reader
from bigtrain.evaluate.folder_model import chat, ends_beside
from bigtrain.models.cached import CausalRows
from bigtrain.models.gpt import GPT
from bigtrain.parallel import compat


class CheckpointModel:
    """See :class:`bigtrain.evaluate.generate.LanguageModel`."""

    def __init__(
        self, path: Path, tokenizer: Path | None, parallel: ParallelConfig, precision: Literal["fp32", "bf16"]
    ) -> None:
        self._checkpoint = find_checkpoint(path)
        self._parallel, self._precision = parallel, precision
        model = model_config(self._checkpoint)
        if model.architecture != "gpt":
            raise CheckpointError(
                f"{self._checkpoint.path} is of model.architecture={model.architecture}; text is continued by gpt alone"
            )
        if model.num_experts is not None and parallel.tensor > 1:
            raise ConfigError(
                f"a mixture of experts is shared out by layers alone here, and {parallel.tensor} processes would share "
                "each layer: give --pipeline the number of processes (--nproc)"
            )
        self._tokenizer = find_tokenizer(run_folder(self._checkpoint, path), tokenizer, model)
        self._rows = min(self._checkpoint.origin.get("vocab_size", self._tokenizer.vocab_size), model.vocab_size)
        self._unspoken = set(self._tokenizer.special_tokens.values())
        self._from_elsewhere = None
        if "family" in self._checkpoint.origin and (self._tokenizer.path.parent / "tokenizer_config.json").is_file():
            self._from_elsewhere = AutoTokenizer.from_pretrained(self._tokenizer.path.parent, local_files_only=True)
        self.positions = model.max_position_embeddings
        self.ends = ends_beside(self._tokenizer.path.parent) | {self._tokenizer.eos_id}

    def encode(self, prompt: str) -> list[int]:
        """As in training, where nothing but the end of another document stood before a text; a model from Hugging Face
        knows texts as its tokenizer begins them there, some with a token that every text has."""
        return (
            self._tokenizer.encode(prompt)
            if self._from_elsewhere is None
            else self._from_elsewhere(prompt)["input_ids"]
        )

    def encode_chat(self, prompt: str) -> list[int]:
        """By the chat template that came with the tokenizer."""
        return chat(self._tokenizer.path.parent, prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of what stands for text."""
        known = self._tokenizer.vocab_size
        return self._tokenizer.decode([i for i in ids if i < known and i not in self._unspoken])

    @contextmanager
    def loaded(self) -> Iterator["_Loaded"]:
        """The weights, on every process its part."""
        with own_model(self._checkpoint, self._parallel, self._precision) as model:
            yield _Loaded(model, self._rows)


class _Loaded:
    def __init__(self, model: GPT, rows: int) -> None:
        self._model, self.vocabulary = model, rows
        self._last = dist.get_world_size() - 1  # one of the last stage: stages are the slowest axis of the ranks

    def start(self, padding: Tensor, length: int) -> Reader:
        """With Megatron-core's cache of keys and values, for `length` columns."""
        return _Cached(self._model, self.vocabulary, CausalRows(padding.to(compat.device()), length))

    def agree(self, said: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What the last stage says, on every process."""
        agreed = torch.empty(shape, dtype=dtype, device=compat.device()) if said is None else said
        dist.broadcast(agreed, src=self._last)
        return agreed


class _Cached:
    """The model's answers to a batch of rows, of which it keeps the keys and values."""

    def __init__(self, model: GPT, vocabulary: int, rows: CausalRows) -> None:
        """`vocabulary`: tokens that are no padding: what an export writes."""
        self._model, self._vocabulary, self._rows = model, vocabulary, rows

    def __call__(self, ids: Tensor) -> Tensor | None:
        batch = self._rows.next(ids.to(compat.device()))
        model = self._model
        if not model.pre_process:
            model.set_input_tensor(self._receive((ids.shape[1], len(ids), model.config.hidden_size)))
        out = model.next_logits(batch)
        batch.cache.sequence_len_offset += ids.shape[1]
        if model.post_process:
            return out[:, : self._vocabulary]
        dist.send(out.contiguous(), dist.get_rank() + model.config.tensor_model_parallel_size)
        return None

    def pick(self, rows: Tensor) -> None:
        self._rows.pick(rows.to(compat.device()))

    def _receive(self, shape: tuple[int, int, int]) -> Tensor:
        config = self._model.config
        hidden = torch.empty(shape, dtype=config.params_dtype, device=compat.device())
        dist.recv(hidden, dist.get_rank() - config.tensor_model_parallel_size)
        return hidden
