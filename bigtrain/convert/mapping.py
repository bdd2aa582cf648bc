"""A map between our weights and a family's, as data, and what must hold of it.

A family's file declares, for each of our weights, which tensors of the family its rows are. Rows are
indices, so that one declaration reads in both directions: `theirs = ours[rows]`, `ours[rows] = theirs`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bigtrain.config import ModelConfig
from bigtrain.errors import ConversionError

Rows = Callable[[ModelConfig], np.ndarray] | None
"""Indices into the first axis of our weight (of one layer's, where layers are stacked); None: all of them."""

WeightMap = Mapping[str, Mapping[str, Rows]]
"""Our name -> {the family's name -> rows}. A `{}` in the family's name stands for the layer, and says that
our weight is stacked over the layers."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the family, and where it comes from."""

    name: str
    source: str
    layer: int | None
    rows: Rows

    def shape(self, source_shape: tuple[int, ...], model: ModelConfig) -> tuple[int, ...]:
        """Its shape, where our (stacked) weight has `source_shape`."""
        shape = source_shape if self.layer is None else source_shape[1:]
        return shape if self.rows is None else (len(self.rows(model)), *shape[1:])


def pieces(
    weights: WeightMap,
    model: ModelConfig,
    sources: Mapping[str, tuple[int, ...]],
    targets: Mapping[str, tuple[int, ...]],
) -> list[Piece]:
    """Every tensor of the family with its origin, layer by layer, all of them and nothing twice.

    Args:
        weights: The family's map.
        model: The model's shape.
        sources: Our weights and their global shapes.
        targets: The family's tensors and their shapes, as its own implementation has them.

    Raises:
        ConversionError: A weight has no place in the family, a tensor would be left unfilled or filled twice,
            or a shape does not fit.
    """
    found: dict[str, Piece] = {}
    for source in sources:
        if source not in weights:
            raise ConversionError(f"{source}: no row of the map takes this weight of the checkpoint")
        for piece in _pieces_of(source, weights[source], model):
            if piece.name in found:
                raise ConversionError(f"{piece.name}: filled from both {found[piece.name].source} and {source}")
            found[piece.name] = piece
    _same_names(found, targets)
    for piece in found.values():
        shape = piece.shape(sources[piece.source], model)
        if shape != targets[piece.name]:
            raise ConversionError(f"{piece.name} is {targets[piece.name]}, and {piece.source} would make it {shape}")
    return [found[name] for name in targets]


def _pieces_of(source: str, row: Mapping[str, Rows], model: ModelConfig) -> Iterator[Piece]:
    for name, rows in row.items():
        if "{}" not in name:
            yield Piece(name, source, None, rows)
            continue
        for layer in range(model.num_hidden_layers):
            yield Piece(name.format(layer), source, layer, rows)


def _same_names(found: Iterable[str], targets: Iterable[str]) -> None:
    if unfilled := sorted(set(targets) - set(found)):
        raise ConversionError(f"no weight of the checkpoint fills {', '.join(unfilled)}")
    if unknown := sorted(set(found) - set(targets)):
        raise ConversionError(f"the family's model has no {', '.join(unknown)}, which the map would fill")


def heads(model: ModelConfig) -> np.ndarray:
    """Rows of Megatron-core's joint query-key-value weight: [key/value heads, query heads of each + 2, head_dim].

    Each key/value head's group lies together: its query heads, its key, its value.
    """
    groups = model.kv_heads
    per_group = model.num_attention_heads // groups + 2
    return np.arange(groups * per_group * model.head_size).reshape(groups, per_group, model.head_size)


def query_rows(model: ModelConfig) -> np.ndarray:
    """The query heads, in order."""
    return heads(model)[:, :-2].ravel()


def key_rows(model: ModelConfig) -> np.ndarray:
    """The key heads, in order."""
    return heads(model)[:, -2].ravel()


def value_rows(model: ModelConfig) -> np.ndarray:
    """The value heads, in order."""
    return heads(model)[:, -1].ravel()


def gate_rows(model: ModelConfig) -> np.ndarray:
    """The gate, the first half of a gated feed-forward's joint matrix."""
    return np.arange(model.ffn_size)


def up_rows(model: ModelConfig) -> np.ndarray:
    """The up projection, its second half."""
    return np.arange(model.ffn_size, 2 * model.ffn_size)
