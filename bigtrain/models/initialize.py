"""Initial weights that do not depend on the layout.

Each row of a global matrix is drawn by a generator seeded with (seed, name, layer, block of rows), so
that a process draws only the rows it holds (and, of a matrix split along its columns, cuts out its
part), and every layout starts from the same model.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bigtrain.config import ModelConfig
from bigtrain.models.lora import B, is_adapter
from bigtrain.models.sharding import Box, ShardedParameter

ROWS_PER_BLOCK = 256


@torch.no_grad()
def initialize_weights(parameters: Sequence[ShardedParameter], model: ModelConfig, seed: int) -> None:
    """Fill every parameter: norms with ones, or where one is added to them with zeros, biases with zeros, the rest with
    N(0, std^2). Of adapters A is drawn evenly from +-1 / sqrt(its columns), and B is zero, as `peft` has it.

    std is `initializer_range`, and for GPT's projections that write into the residual stream
    `initializer_range / sqrt(2 * num_hidden_layers)` (GPT-2, section 2.3). T5 has its own, see `_t5_std`.
    """
    for sharded in parameters:
        flat = sharded.parameter.data.view(-1)
        for box in sharded.boxes:
            values = _initial_values(box, model, seed)
            flat[box.start : box.start + box.numel].copy_(values.reshape(-1))


def _initial_values(box: Box, model: ModelConfig, seed: int) -> Tensor:
    if is_adapter(box.key):
        if f".{B}." in box.key:
            return torch.zeros(box.shape)
        return drawn_box(box, seed, torch.rand).mul_(2).sub_(1).mul_(box.global_shape[-1] ** -0.5)
    if box.key.endswith("bias"):
        return torch.zeros(box.shape)
    if "norm" in box.key:
        return torch.zeros(box.shape) if model.zero_centered_norm else torch.ones(box.shape)
    if model.architecture == "t5":
        return normal_box(box, seed) * _t5_std(box, model)
    std = model.initializer_range
    if model.architecture == "gpt" and box.key.endswith(("linear_proj.weight", "linear_fc2.weight")):
        std /= math.sqrt(2 * model.num_hidden_layers)
    return normal_box(box, seed).mul_(std)


def _t5_std(box: Box, model: ModelConfig) -> Tensor | float:
    """Of T5's code, which scales neither scores nor the residual stream: a number, or one for each row [rows, 1].

    1 for the embeddings, else 1 / sqrt(columns of the matrix), and for queries that times 1 / sqrt(head size). The
    untied output layer follows the rule too, as in T5X; in `transformers` it has 1, and the loss begins above 20.
    """
    std = box.global_shape[-1] ** -0.5
    name = box.key.removesuffix(".weight")
    if name.endswith("word_embeddings"):
        return 1.0
    if name.endswith("relative_attention_bias"):
        return model.hidden_size**-0.5
    if name.endswith("linear_q"):
        return std * model.head_size**-0.5
    if name.endswith("linear_qkv"):  # of each head queries, keys and values
        rows = torch.arange(box.offset[-2], box.offset[-2] + box.shape[-2])
        is_query = rows % (3 * model.head_size) < model.head_size
        return torch.where(is_query, std * model.head_size**-0.5, std)[:, None]
    return std


def normal_box(box: Box, seed: int) -> Tensor:
    """The box of a global tensor of standard normal float32 numbers that only (seed, name) decide."""
    return drawn_box(box, seed, torch.randn)


def drawn_box(box: Box, seed: int, draw: Callable[..., Tensor]) -> Tensor:
    """The same of numbers that `draw` draws, given a number of rows, of columns, and a generator."""
    rows, columns = box.global_shape[-2:]
    *stacked_offset, row, column = box.offset
    *stacked_shape, row_count, column_count = box.shape
    out = torch.empty(box.shape).view(-1, row_count, column_count)
    layers = itertools.product(*(range(o, o + n) for o, n in zip(stacked_offset, stacked_shape, strict=True)))
    for i, layer in enumerate(layers):
        for block in range(row // ROWS_PER_BLOCK, -(-(row + row_count) // ROWS_PER_BLOCK)):
            first = block * ROWS_PER_BLOCK
            count = min(ROWS_PER_BLOCK, rows - first)
            drawn = draw(count, columns, generator=_generator(seed, box.key, layer, block))
            low, high = max(first, row), min(first + count, row + row_count)
            out[i, low - row : high - row] = drawn[low - first : high - first, column : column + column_count]
    return out.view(box.shape)


def _generator(seed: int, key: str, layer: tuple[int, ...], block: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{key}/{layer}/{block}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
