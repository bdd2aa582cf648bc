"""The likeliest texts by beam search: several beginnings of each text are carried on together.

Decides as `generate(num_beams=...)` of `transformers` does: of the continuations of all beams (one for each beam and
each token that may end a text, and one more) those that go on become the next beams; those that end, if they are among
the first `num_beams`, are kept by their log-probability over a power of their length.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bigtrain.errors import UserError

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class Beams:
    """How the likeliest text is looked for."""

    num_beams: int = 1
    """Beginnings that are carried on together; with 1 the likeliest token is taken always."""
    length_penalty: float = 1.0
    """A finished text is judged by its log-probability divided by this power of its tokens, the end counted: above 0
    longer texts are favoured, below 0 shorter ones."""
    early_stopping: EarlyStopping = False
    """When a text is given: true: as soon as `num_beams` are finished; false: when none that goes on would be better
    at its present length; "never": when none could be at any length."""

    def check(self) -> None:
        """Raises a UserError where an option is out of its range."""
        if self.num_beams < 1:
            raise UserError(f"num_beams is {self.num_beams}; it must be at least 1")
        if not np.isfinite(self.length_penalty):
            raise UserError(f"length_penalty is {self.length_penalty}; it must be a finite number")


class Reader(Protocol):
    """A batch of rows that a model reads; it keeps what it has made of the columns so far."""

    def __call__(self, ids: Tensor) -> Tensor | None:
        """Read the next columns [rows, n]; gives the logits after the last, [rows, vocab_size], where they are had."""

    def pick(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; one may be there several times."""


Agree = Callable[[Tensor | None, tuple[int, ...]], Tensor]
"""Gives every process that shares the model the same float64 tensor of a shape: that of who has the logits."""


@dataclass(frozen=True)
class Found:
    """The best text."""

    ids: list[int]
    """Its tokens, without the one that ended it."""
    ended: bool
    """Whether the model ended it, and not its limit."""
    score: float
    """What it was judged by."""


class Search:
    """The search for the likeliest text of each row of a batch; all processes that share the model go through it."""

    def __init__(
        self,
        read: Reader,
        agree: Agree,
        first: Tensor,
        how: Beams,
        ends: Collection[int],
        limits: Sequence[int],
        vocabulary: int,
    ) -> None:
        """
        Args:
            read: The rows.
            agree: Called at each step.
            first: [texts, n]: the columns to begin with.
            how: What is looked for.
            ends: Tokens that end a text.
            limits: The most tokens of each text.
            vocabulary: How many tokens the model can say.

        Raises:
            UserError: These are too few for so many beams; on every process.
        """
        self._read, self._agree, self._ids, self._how = read, agree, first, how
        self._kept = max(2, 1 + len(ends)) * how.num_beams
        if self._kept > vocabulary:
            raise UserError(
                f"num_beams is {how.num_beams}, which chooses among {self._kept} tokens, and the model has "
                f"{vocabulary}; take fewer"
            )
        self._texts = [_Text(how, ends, limit) for limit in limits]
        self._going = [*self._texts]

    @property
    def done(self) -> bool:
        """Whether all texts are found."""
        return not self._going

    def step(self) -> None:
        """Read a column, and choose the next."""
        logits = self._read(self._ids)
        likeliest = None if logits is None else self._likeliest(logits)
        agreed = self._agree(likeliest, (len(self._going), self._kept, 3))
        beams = len(self._ids) // len(self._going)
        rows: list[int] = []
        tokens: list[int] = []
        for number, (text, candidates) in enumerate(zip(self._going, agreed.tolist(), strict=True)):
            for beam, token in text.advance(candidates):
                rows.append(number * beams + beam)
                tokens.append(token)
        self._going = [text for text in self._going if not text.done]
        if rows:
            if rows != [*range(len(self._ids))]:
                self._read.pick(torch.tensor(rows, device=self._ids.device))
            self._ids = torch.tensor(tokens, device=self._ids.device)[:, None]

    def found(self) -> list[Found]:
        """What was found for each row, in order."""
        return [text.best() for text in self._texts]

    def _likeliest(self, logits: Tensor) -> Tensor:
        """float64 [texts that go on, candidates, 3]: log-probability, beam and token of each, the likeliest first."""
        vocabulary = logits.shape[-1]
        scores = logits.float()
        if self._how.num_beams > 1:
            so_far = [score for text in self._going for score in text.scores]
            scores = scores.log_softmax(-1) + torch.tensor(so_far, device=logits.device)[:, None]
        scores = scores.reshape(len(self._going), -1)
        best, places = scores.topk(self._kept)
        return torch.stack([best.double(), places // vocabulary, places % vocabulary], dim=-1)


class _Text:
    """The beams of one text."""

    def __init__(self, how: Beams, ends: Collection[int], limit: int) -> None:
        self._how, self._ends, self._limit = how, ends, limit
        self._beams: list[list[int]] = [[]]
        self.scores = [0.0]
        """Log-probability of each beam, float32."""
        self._finished: list[Found] = []
        self.done = False

    def advance(self, candidates: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
        """Take what follows: log-probability, beam and token of each candidate, the likeliest first.

        Returns:
            Of every beam that goes on the one that it comes from, and its new token; nothing when the text is found.
        """
        length = len(self._beams[0]) + 1
        power = np.float32(length**self._how.length_penalty)
        going: list[tuple[float, int, int]] = []
        for place, (score, from_beam, token) in enumerate(candidates):
            beam, token = int(from_beam), int(token)
            ended = token in self._ends
            if not ended and length < self._limit:
                going.append((score, beam, token))
            elif place < self._how.num_beams:
                ids = self._beams[beam] if ended else [*self._beams[beam], token]
                self._finished.append(Found(ids, ended, float(np.float32(score) / power)))
        self._finished = sorted(self._finished, key=lambda found: -found.score)[: self._how.num_beams]
        going = going[: self._how.num_beams]
        self._beams = [[*self._beams[beam], token] for _, beam, token in going]
        self.scores = [score for score, _, _ in going]
        self.done = not going or (len(self._finished) == self._how.num_beams and self._is_enough(length))
        return [] if self.done else [(beam, token) for _, beam, token in going]

    def best(self) -> Found:
        return self._finished[0]

    def _is_enough(self, length: int) -> bool:
        """Whether no beam that goes on is going to be better than all that are finished."""
        how = self._how
        if how.num_beams == 1 or how.early_stopping is True:
            return True
        if how.early_stopping == "never" and how.length_penalty > 0:
            length = self._limit
        possible = np.float32(self.scores[0]) / np.float32(length**how.length_penalty)
        return bool(possible <= np.float32(self._finished[-1].score))
