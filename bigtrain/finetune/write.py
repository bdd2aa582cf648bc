"""Texts that a model makes of others, the likeliest token always: for scores, on one process."""

import torch
from torch import Tensor

from bigtrain.config import Config
from bigtrain.data.batch import Batch
from bigtrain.data.loader import CausalBatch
from bigtrain.data.pair_batches import PairBatch
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.finetune.encode import Encoded, Item
from bigtrain.parallel.engine import Engine


def write_texts(engine: Engine, config: Config, encoded: Encoded, tokenizer: Tokenizer) -> list[str]:
    """What the model makes of each item's source, until it ends or has `finetune.max_target_length` tokens.

    Every token costs a pass over all before it.
    """
    size = config.training.micro_batch_size
    texts: list[str] = []
    for first in range(0, len(encoded), size):
        said = _continued(engine, config, encoded.items[first : first + size], encoded.pad, tokenizer.eos_id)
        texts += [tokenizer.decode([i for i in ids if i < tokenizer.vocab_size]).strip() for ids in said]
    return texts


def _continued(engine: Engine, config: Config, items: list[Item], pad: int, end: int) -> list[list[int]]:
    said: list[list[int]] = [[] for _ in items]
    going = set(range(len(items)))
    room = config.finetune.max_target_length
    if config.model.architecture == "gpt":
        room = min(room, config.model.max_position_embeddings - max(item.first for item in items))
    make = _pairs if config.model.architecture == "t5" else _prompts
    for _ in range(room):
        batch, last = make(items, said, pad)
        (logits,) = engine.predict([batch])
        likeliest = logits[torch.arange(len(items)), last].argmax(-1).tolist()
        for row in [*going]:
            if likeliest[row] == end:
                going.discard(row)
            else:
                said[row].append(likeliest[row])
        if not going:
            break
    return said


def _prompts(items: list[Item], said: list[list[int]], pad: int) -> tuple[Batch, Tensor]:
    """Prompts and what follows so far, and where each ends."""
    rows = [[*item.ids[: item.first].tolist(), *more] for item, more in zip(items, said, strict=True)]
    ids = _filled(rows, pad)
    positions = torch.arange(ids.shape[1], dtype=torch.int32).expand_as(ids)
    return CausalBatch(ids, ids, torch.zeros(ids.shape), positions), torch.tensor([len(row) - 1 for row in rows])


def _pairs(items: list[Item], said: list[list[int]], pad: int) -> tuple[Batch, Tensor]:
    """Sources, and what the decoder has said so far, from its start."""
    ids = _filled([item.ids.tolist() for item in items], pad)
    is_text = torch.arange(ids.shape[1]) < torch.tensor([len(item.ids) for item in items])[:, None]
    decoded = _filled([[pad, *more] for more in said], pad)
    batch = PairBatch(ids, decoded, torch.zeros(decoded.shape), decoded, is_text)
    return batch, torch.tensor([len(more) for more in said])


def _filled(rows: list[list[int]], pad: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
