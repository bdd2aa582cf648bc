"""A Hugging Face folder as a model that continues text: the model of `transformers`, on this process."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from bigtrain.errors import CheckpointError, UserError
from bigtrain.evaluate.beams import Reader
from bigtrain.parallel import compat


class FolderModel:
    """See :class:`bigtrain.evaluate.generate.LanguageModel`."""

    def __init__(self, folder: Path, dtype: Literal["auto", "float32", "bfloat16"]) -> None:
        self._folder, self._dtype = folder, dtype
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: transformers cannot read it ({error})") from None
        self.positions: int = getattr(config, "max_position_embeddings", sys.maxsize)
        self.ends = ends_beside(folder) or _as_set(getattr(config, "eos_token_id", None))

    def encode(self, prompt: str) -> list[int]:
        """As the folder's tokenizer begins a text, with its token for a beginning where it has one."""
        return self._tokenizer(prompt)["input_ids"]

    def encode_chat(self, prompt: str) -> list[int]:
        """By the folder's chat template."""
        return chat(self._folder, prompt)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    @contextmanager
    def loaded(self) -> Iterator["_Loaded"]:
        """The weights."""
        try:
            model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=self._dtype, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{self._folder}: transformers cannot make a language model of it ({error})"
            ) from None
        yield _Loaded(model.to(compat.device()).eval())


def chat(folder: Path, prompt: str) -> list[int]:
    """The tokens of a prompt as a user's message, and of the beginning of the answer.

    Raises:
        UserError: The tokenizer in the folder has no chat template.
    """
    has_config = (folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_config else None
    if tokenizer is None or not tokenizer.chat_template:
        raise UserError(f"--chat needs a chat template, and the tokenizer in {folder} has none")
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def ends_beside(folder: Path) -> frozenset[int]:
    """The tokens that end a text, as the generation configuration in a folder says, if there is one."""
    if not (folder / "generation_config.json").is_file():
        return frozenset()
    return _as_set(GenerationConfig.from_pretrained(folder).eos_token_id)


def _as_set(ends: int | list[int] | None) -> frozenset[int]:
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


class _Loaded:
    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]

    def start(self, padding: Tensor, length: int) -> Reader:
        """With the cache that the model makes for itself; it grows as it needs."""
        return _Cached(self._model, padding.to(self._model.device))

    def agree(self, said: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert said is not None, "there is one process"
        return said


class _Cached:
    """The model's answers to a batch of rows."""

    def __init__(self, model: PreTrainedModel, padding: Tensor) -> None:
        self._model, self._padding = model, padding
        self._cache: Any = None
        self._columns = 0

    def __call__(self, ids: Tensor) -> Tensor:
        begin, self._columns = self._columns, self._columns + ids.shape[1]
        places = torch.arange(self._columns, device=self._padding.device) - self._padding[:, None]
        out = self._model(
            ids.to(self._padding.device),
            attention_mask=(places >= 0).long(),
            position_ids=places[:, begin:].clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        return out.logits[:, -1].float()

    def pick(self, rows: Tensor) -> None:
        rows = rows.to(self._padding.device)
        self._padding = self._padding[rows]
        self._cache.reorder_cache(rows)
