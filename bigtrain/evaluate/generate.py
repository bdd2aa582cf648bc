"""Text continued by a model: prompts in batches, a cache of keys and values, one token after the other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from bigtrain.checkpoint.places import is_local
from bigtrain.config import ParallelConfig
from bigtrain.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from bigtrain.evaluate.beams import Beams, Found, Reader
    from bigtrain.evaluate.sampling import Sampling

_LONGEST = 128
_OF_A_RUN = ("checkpoints", "config.yaml", "complete.json")

Told = Callable[[int, str], None]
"""Is told of every piece of text as it is made: the place of its prompt, and the piece; an empty one is the end."""


class LoadedModel(Protocol):
    """A model in memory."""

    vocabulary: int
    """How many tokens it can say."""

    def start(self, padding: "Tensor", length: int) -> "Reader":
        """Begin a batch of rows, each with so many columns of `padding` [rows] left of its beginning, and `length`
        columns altogether at most."""

    def agree(self, said: "Tensor | None", shape: tuple[int, ...], dtype: "dtype") -> "Tensor":
        """The same tensor on every process, that of who has the logits."""


class LanguageModel(Protocol):
    """A model that lies somewhere, with its tokenizer."""

    positions: int
    """Tokens that it can see at once."""
    ends: frozenset[int]
    """Tokens that end a text."""

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a text to continue."""

    def encode_chat(self, prompt: str) -> list[int]:
        """The tokens of a message to answer; a UserError where there is no chat template."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without the special ones."""

    def loaded(self) -> AbstractContextManager[LoadedModel]:
        """Its weights, read."""


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt."""

    prompt: str
    text: str
    ids: tuple[int, ...]
    """Its tokens, without the one that ended it."""
    ended: bool
    """Whether the model ended the text, and not the limit of its length."""


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    how: "Sampling | Beams",
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
    told: Told = lambda place, piece: None,
) -> list[Continuation]:
    """Continue each prompt until the model ends it or it is long enough; all processes of a layout call it.

    Args:
        model: As `open_model` gives it.
        prompts: Texts to continue, not empty.
        how: How tokens are drawn, or the likeliest text is looked for.
        max_new_tokens: The longest continuation, in tokens; default: 128, or what the model's positions leave.
        batch_size: Prompts that are read and continued together, in their order.
        chat: Each prompt is a user's message, to be answered.
        told: Is told of the text while it is made; of the likeliest, when it is found.

    Raises:
        CheckpointError: The weights are missing or damaged.
        UserError: An option is out of its range, a prompt is empty, or does not fit the model's positions with its
            continuation.
    """
    how.check()
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    encoded = _encode(model, prompts, max_new_tokens, chat)
    made: list[Continuation] = []
    with model.loaded() as loaded:
        for first in range(0, len(prompts), batch_size):
            rows = _Rows(model, encoded[first : first + batch_size], max_new_tokens, first, told)
            _continue(loaded, rows, how)
            made += rows.continuations(prompts[first : first + batch_size])
    return made


def open_model(
    path: Path,
    *,
    tokenizer: Path | None = None,
    parallel: ParallelConfig | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> LanguageModel:
    """The model of a run, of one of its checkpoints, or of a Hugging Face folder.

    Args:
        path: A run's folder (its newest checkpoint), one step's folder or URL, or a Hugging Face folder.
        tokenizer: For a checkpoint that lies in no run's folder.
        parallel: Tensor and pipeline parallel, for a checkpoint; default: one process.
        dtype: Type of the weights; default: float32 for a checkpoint, and what a Hugging Face folder says.

    Raises:
        CheckpointError: It is none of them, or incomplete or damaged.
        UserError: A Hugging Face folder is to be split.
    """
    if is_local(path) and not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    if is_local(path) and (path / "config.json").is_file():
        _check_folder(path, parallel or ParallelConfig())
        from bigtrain.evaluate.folder_model import FolderModel

        return FolderModel(path, dtype or "auto")
    if is_local(path) and not _may_hold_checkpoints(path):
        raise CheckpointError(
            f"{path} is neither a run of bigtrain or one of its checkpoints (it has no {', no '.join(_OF_A_RUN)}) "
            "nor a Hugging Face folder (it has no config.json)"
        )
    from bigtrain.evaluate.checkpoint_model import CheckpointModel

    precision: Literal["fp32", "bf16"] = "bf16" if dtype == "bfloat16" else "fp32"
    return CheckpointModel(path, tokenizer, parallel or ParallelConfig(), precision)


def _may_hold_checkpoints(path: Path) -> bool:
    return (
        path.name.startswith("step-") or any(path.glob("*step-*")) or any((path / name).exists() for name in _OF_A_RUN)
    )


def _check_folder(folder: Path, parallel: ParallelConfig) -> None:
    if parallel.model_parallel_size > 1:
        raise UserError(
            f"{folder} is a Hugging Face folder, which transformers reads in one process: leave --nproc and --pipeline "
            "out, or give the run that it came from"
        )
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        raise CheckpointError(f"{folder} is a Hugging Face folder without a tokenizer: it has no tokenizer_config.json")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no weights (*.safetensors)")


def _encode(model: LanguageModel, prompts: Sequence[str], max_new_tokens: int | None, chat: bool) -> list[list[int]]:
    found = []
    for number, prompt in enumerate(prompts, 1):
        name = f"the prompt {prompt[:40]!r}"
        ids = (model.encode_chat if chat else model.encode)(prompt) if prompt else []
        if not ids:
            raise UserError(f"prompt {number} of {len(prompts)} is empty: there is nothing to continue")
        if len(ids) >= model.positions:
            raise UserError(
                f"{name} has {len(ids)} tokens, and the model {model.positions} positions "
                "(max_position_embeddings): there is no room to continue it"
            )
        if max_new_tokens is not None and len(ids) + max_new_tokens > model.positions:
            raise UserError(
                f"{name} has {len(ids)} tokens; with {max_new_tokens} new ones (max_new_tokens) that is more than the "
                f"model's {model.positions} positions (max_position_embeddings); "
                f"max_new_tokens={model.positions - len(ids)} would fit"
            )
        found.append(ids)
    return found


class _Rows:
    """The prompts of a batch and what has been made of them."""

    def __init__(
        self, model: LanguageModel, prompts: Sequence[list[int]], longest: int | None, first: int, told: Told
    ) -> None:
        from bigtrain.evaluate.text import TextOfTokens

        self.prompts = prompts
        self.limits = [longest or min(_LONGEST, model.positions - len(ids)) for ids in prompts]
        self.first = first
        self.ends, self._told = model.ends, told
        self._ids: list[list[int]] = [[] for _ in prompts]
        self._texts = [TextOfTokens(model.decode, ids) for ids in prompts]
        self._pieces: list[list[str]] = [[] for _ in prompts]
        self._ended = [False] * len(prompts)
        self._running = set(range(len(prompts)))

    def add(self, tokens: Sequence[int]) -> bool:
        """Take one token for every row; whether any goes on."""
        for row in sorted(self._running):
            if tokens[row] in self.ends:
                self._ended[row] = True
            else:
                self._ids[row].append(tokens[row])
                self._tell(row, self._texts[row].add(tokens[row]))
            if self._ended[row] or len(self._ids[row]) == self.limits[row]:
                self._running.discard(row)
                self._finish(row)
        return bool(self._running)

    def take(self, found: "Sequence[Found]") -> None:
        """Take all tokens of every row at once."""
        for row, text in enumerate(found):
            for token in text.ids:
                self._ids[row].append(token)
                self._tell(row, self._texts[row].add(token))
            self._ended[row] = text.ended
            self._finish(row)

    def continuations(self, prompts: Sequence[str]) -> Iterator[Continuation]:
        """What was made, in order."""
        for row, prompt in enumerate(prompts):
            yield Continuation(prompt, "".join(self._pieces[row]), tuple(self._ids[row]), self._ended[row])

    def _finish(self, row: int) -> None:
        self._tell(row, self._texts[row].rest())
        self._told(self.first + row, "")

    def _tell(self, row: int, piece: str) -> None:
        if piece:
            self._pieces[row].append(piece)
            self._told(self.first + row, piece)


def _continue(loaded: LoadedModel, rows: _Rows, how: "Sampling | Beams") -> None:
    import torch

    from bigtrain.evaluate.beams import Search
    from bigtrain.evaluate.sampling import Sampler, Sampling

    longest = max(map(len, rows.prompts))
    padding = torch.tensor([longest - len(ids) for ids in rows.prompts])
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows.prompts])
    with torch.inference_mode():
        read = loaded.start(padding, longest + max(rows.limits) - 1)
        if not isinstance(how, Sampling):
            agree = partial(loaded.agree, dtype=torch.float64)
            search = Search(read, agree, ids, how, rows.ends, rows.limits, loaded.vocabulary)
            while not search.done:
                search.step()
            rows.take(search.found())
            return
        sampler = Sampler(how, range(rows.first, rows.first + len(rows.prompts)))
        goes_on = True
        while goes_on:
            logits = read(ids)
            tokens = loaded.agree(None if logits is None else sampler(logits), (len(ids),), torch.int64)
            goes_on = rows.add(tokens.tolist())
            ids = tokens[:, None]
