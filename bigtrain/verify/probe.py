"""Change what must not be seen, and look whether anything moves that must not."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bigtrain.data.batch import Batch
from bigtrain.data.loader import CausalBatch
from bigtrain.parallel.engine import Engine
from bigtrain.verify.legs import Moves

Where = Callable[[CausalBatch], Tensor]
"""The tokens to perturb: bool, of the shape of the batch."""


def probe(engine: Engine, batches: Sequence[Batch]) -> Moves:
    """What moves when tokens are changed; all processes call it with their own batches."""
    texts = [batch for batch in batches if isinstance(batch, CausalBatch)]
    documents = texts[0].documents is not None
    own, others = _moves(engine, texts, _middle_document) if documents else (None, None)
    causal = [_moves(engine, texts, _from(share)) for share in (0.25, 0.5, 0.9)]
    return Moves(
        earlier=max(outside for _, outside in causal), later=min(inside for inside, _ in causal), own=own, others=others
    )


def _moves(engine: Engine, batches: Sequence[CausalBatch], where: Where) -> tuple[float, float]:
    """Relative change of the losses at the perturbed tokens, and of those at all others; labels stay the same."""
    perturbed = [_perturb(batch, where(batch), engine.config.model.vocab_size) for batch in batches]
    changes = []
    for select in (lambda tokens: tokens, lambda tokens: ~tokens):
        before, after = (
            float(engine.evaluate([_weighted(batch, select(where(batch))) for batch in each]))
            for each in (batches, perturbed)
        )
        changes.append(abs(after - before) / abs(before))
    return changes[0], changes[1]


def _weighted(batch: CausalBatch, tokens: Tensor) -> CausalBatch:
    """Losses at `tokens` alone, each with a weight of its own, so that two changes do not cancel out."""
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) + 0.5
    return replace(batch, loss_mask=weights * tokens)


def _perturb(batch: CausalBatch, tokens: Tensor, vocab_size: int) -> CausalBatch:
    shift = torch.randint(1, vocab_size, tokens.shape, generator=torch.Generator().manual_seed(2))
    return replace(batch, input_ids=torch.where(tokens, (batch.input_ids + shift) % vocab_size, batch.input_ids))


def _from(share: float) -> Where:
    """The tokens of the last part of each sequence."""

    def where(batch: CausalBatch) -> Tensor:
        length = batch.input_ids.shape[1]
        return (torch.arange(length) >= int(share * length)).expand_as(batch.input_ids)

    return where


def _middle_document(batch: CausalBatch) -> Tensor:
    assert batch.documents is not None
    rows = []
    for lengths in batch.documents:
        number = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        rows.append(number == len(lengths) // 2)
    return torch.stack(rows)
