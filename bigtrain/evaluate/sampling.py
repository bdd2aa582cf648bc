"""Which token comes next, given the logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigtrain.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.8
    """Divides the logits before they become probabilities; 0 takes the likeliest token always."""
    top_k: int = 0
    """Draw among that many likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the fewest likeliest tokens that together have this probability (nucleus sampling,
    arXiv:1904.09751), after `top_k`."""
    seed: int = 0
    """Decides what is drawn. A prompt's draws depend on it and on the prompt's place, not on its neighbours."""

    def check(self) -> None:
        """Raises a UserError where an option is out of its range."""
        for name, value, fits, rule in (
            ("temperature", self.temperature, self.temperature >= 0, "must be 0 (the likeliest token always) or more"),
            ("top_k", self.top_k, self.top_k >= 0, "must be 0 (all tokens) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("seed", self.seed, self.seed >= 0, "must be 0 or more"),
        ):
            if not fits:
                raise UserError(f"{name} is {value}; it {rule}")


class Sampler:
    """Draws the next token of some prompts, each with random numbers of its own."""

    def __init__(self, how: Sampling, numbers: Sequence[int]) -> None:
        """`numbers` are the prompts' places among all."""
        self._how = how
        self._random = [np.random.default_rng((how.seed, number)) for number in numbers]

    def __call__(self, logits: Tensor) -> Tensor:
        """[rows, vocab_size] -> [rows] int64.

        Probabilities are added up in the order of the vocabulary, in float64: logits that differ in their last bits,
        as those of another layout do, then move the edges between tokens by as little, and hardly ever a draw.
        """
        if self._how.temperature == 0:
            return logits.argmax(-1)
        scores = among(logits.double() / self._how.temperature, self._how.top_k, self._how.top_p)
        edges = scores.softmax(-1).cumsum(-1)
        drawn = torch.tensor([[one.random()] for one in self._random], dtype=torch.float64, device=edges.device)
        return (edges <= drawn * edges[:, -1:]).sum(-1).clamp(max=edges.shape[-1] - 1)


def among(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """Scores [rows, vocab_size] with minus infinity where a token may not be drawn; as `transformers` has it,
    what ties with the last of `top_k` stays in."""
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        ordered, order = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        unwanted = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= top_p)
        scores = scores.masked_fill(unwanted, -torch.inf)
    return scores
