"""A map between our weights and a family's, as data, and what must hold of it.

A family's file declares, for each of our weights, which tensors of the family its rows are. Rows are
indices, so that one declaration reads in both directions: `theirs = ours[rows]`, `ours[rows] = theirs`. Nothing here
needs torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from bigtrain.config import ModelConfig
from bigtrain.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

Rows = Callable[[ModelConfig], np.ndarray] | None
"""Indices into the first axis of our weight (of one layer's or expert's, where these are stacked); None: all."""


@dataclass(frozen=True)
class Cut:
    """Which part of one of our weights a tensor of the family is, and how it lies there."""

    rows: Rows = None
    transposed: bool = False
    """They keep the matrix as [in, out] (GPT-2); ours are [out, in]."""

    def shape(self, ours: tuple[int, ...], model: ModelConfig) -> tuple[int, ...]:
        """The tensor's shape, where our weight (of one layer) has the shape `ours`."""
        shape = ours if self.rows is None else (len(self.rows(model)), *ours[1:])
        return shape[::-1] if self.transposed else shape

    def out_of(self, ours: "Tensor", model: ModelConfig) -> "Tensor":
        """The tensor, out of our weight; where it can be, a view of it."""
        found = ours if self.rows is None else ours[_index(self.rows(model))]
        return found.T if self.transposed else found

    def into(self, ours: "Tensor", theirs: "Tensor", model: ModelConfig) -> None:
        """Put the tensor into its place in our weight."""
        found = theirs.T if self.transposed else theirs
        if self.rows is None:
            ours.copy_(found)
        else:
            ours[_index(self.rows(model))] = found.to(ours.dtype)


def _index(rows: np.ndarray) -> slice | np.ndarray:
    """A run of rows as a slice, which copies nothing."""
    first, count = int(rows[0]), len(rows)
    if np.array_equal(rows, np.arange(first, first + count)):
        return slice(first, first + count)
    return rows


WeightMap = Mapping[str, Mapping[str, Cut]]
"""Our name -> {the family's name -> which part of ours it is}. `{layer}` and `{expert}` in the family's name stand for
numbers, and say that our weight is stacked over the layers of its stack, or over the layers and their experts. A tensor
that is none of our rows in a model is not there in it."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the family, and where it comes from."""

    name: str
    source: str
    index: tuple[int, ...]
    """Where our weight is stacked: the layer, or the layer and the expert."""
    cut: Cut


def pieces_of(weights: WeightMap, model: ModelConfig, sources: Mapping[str, tuple[int, ...]]) -> dict[str, Piece]:
    """Every tensor of the family by its name, for our weights of these names and global shapes.

    Raises:
        ConversionError: A weight has no place in the family, a tensor would be filled twice, or rows of a weight
            never or twice.
    """
    found: dict[str, Piece] = {}
    for source, shape in sources.items():
        if source not in weights:
            raise ConversionError(f"{source}: no row of the map takes this weight of the checkpoint")
        _check_rows(source, shape, weights[source], model)
        for piece in _pieces_of(source, weights[source], model):
            if piece.name in found:
                raise ConversionError(f"{piece.name}: filled from both {found[piece.name].source} and {source}")
            found[piece.name] = piece
    return found


def pieces(
    weights: WeightMap,
    model: ModelConfig,
    sources: Mapping[str, tuple[int, ...]],
    targets: Mapping[str, tuple[int, ...]],
) -> list[Piece]:
    """Every tensor of the family with its origin, in the order of `targets`, all of them and nothing twice.

    Args:
        weights: The family's map.
        model: The model's shape.
        sources: Our weights and their global shapes.
        targets: The family's tensors and their shapes, as its own implementation has them.

    Raises:
        ConversionError: A weight has no place in the family, a tensor would be left unfilled or filled twice,
            or a shape does not fit.
    """
    found = pieces_of(weights, model, sources)
    if unfilled := sorted(set(targets) - set(found)):
        raise ConversionError(f"no weight of the checkpoint fills {some(unfilled)}")
    if unknown := sorted(set(found) - set(targets)):
        raise ConversionError(f"the family's model has no {some(unknown)}, which the map would fill")
    for name, shape in misshapen(found, model, sources, targets):
        raise ConversionError(f"{name} is {targets[name]}, and {found[name].source} would make it {shape}")
    return [found[name] for name in targets]


def misshapen(
    found: Mapping[str, Piece],
    model: ModelConfig,
    sources: Mapping[str, tuple[int, ...]],
    targets: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of `targets` that has another shape than our weight makes it, and that shape."""
    for name, piece in found.items():
        shape = piece.cut.shape(sources[piece.source][len(piece.index) :], model)
        if shape != targets[name]:
            yield name, shape


def some(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _pieces_of(source: str, row: Mapping[str, Cut], model: ModelConfig) -> Iterator[Piece]:
    for name, cut in row.items():
        if cut.rows is not None and not len(cut.rows(model)):
            continue
        for index in product(*(range(size) for size in _stacked_over(source, name, model))):
            numbers = dict(zip(("layer", "expert"), index, strict=False))
            yield Piece(name.format(**numbers), source, index, cut)


def _stacked_over(source: str, name: str, model: ModelConfig) -> list[int]:
    if "{layer}" not in name:
        return []
    of_decoder = model.architecture == "t5" and source.startswith("decoder.")
    layers = model.decoder_layers if of_decoder else model.num_hidden_layers
    return [layers, *([model.num_experts or 0] if "{expert}" in name else [])]


def _check_rows(source: str, shape: tuple[int, ...], row: Mapping[str, Cut], model: ModelConfig) -> None:
    if [cut.rows for cut in row.values()] == [None]:
        return
    height = shape[len(_stacked_over(source, next(iter(row)), model))]
    used = np.concatenate([np.arange(height) if cut.rows is None else cut.rows(model) for cut in row.values()])
    if not np.array_equal(np.sort(used), np.arange(height)):
        raise ConversionError(f"{source}: the map does not take each of its {height} rows once")


# ------------------------------------------------------------------------------------------- rows of joint matrices


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


def query_key_value_rows(model: ModelConfig) -> np.ndarray:
    """All query heads, then all keys, then all values."""
    return np.concatenate([query_rows(model), key_rows(model), value_rows(model)])


def cross_key_rows(model: ModelConfig) -> np.ndarray:
    """The keys of the joint key-value weight of an attention to another stack, where each head's key and value lie
    together."""
    return _keys_and_values(model)[:, 0].ravel()


def cross_value_rows(model: ModelConfig) -> np.ndarray:
    """Its values."""
    return _keys_and_values(model)[:, 1].ravel()


def _keys_and_values(model: ModelConfig) -> np.ndarray:
    shape = model.kv_heads, 2, model.head_size
    return np.arange(np.prod(shape)).reshape(shape)


def gate_rows(model: ModelConfig) -> np.ndarray:
    """The gate, the first half of a gated feed-forward's joint matrix."""
    return np.arange(model.ffn_size)


def up_rows(model: ModelConfig) -> np.ndarray:
    """The up projection, its second half."""
    return np.arange(model.ffn_size, 2 * model.ffn_size)


def module_rows(matrix: str, module: str, model: ModelConfig) -> np.ndarray | None:
    """Rows of one of Megatron-core's matrices (`linear_qkv`) that are a module (`q_proj`) of those that can have an
    adapter, in the module's order; None: all."""
    if matrix == "linear_qkv":
        return {"q_proj": query_rows, "k_proj": key_rows, "v_proj": value_rows}[module](model)
    if matrix == "linear_kv":
        return (cross_key_rows if module == "k_proj" else cross_value_rows)(model)
    if matrix == "linear_fc1" and model.gated_mlp:
        return (gate_rows if module == "gate_proj" else up_rows)(model)
    return None


WHOLE = Cut()
TURNED = Cut(transposed=True)
QUERY, KEY, VALUE = Cut(query_rows), Cut(key_rows), Cut(value_rows)
QUERY_KEY_VALUE = Cut(query_key_value_rows)
CROSS_KEY, CROSS_VALUE = Cut(cross_key_rows), Cut(cross_value_rows)
GATE, UP = Cut(gate_rows), Cut(up_rows)
