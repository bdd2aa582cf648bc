"""Low-rank adapters (LoRA, arXiv:2106.09685) beside Megatron-core's parallel matrices, and which parameters are
trained.

A matrix of ours may hold several of a family's, one beside the other: of queries, keys and values, or of a gate and
what it gates. Each has an adapter of its own, A [r, in] and B [out, r], as `peft` has it, under the name
`<matrix>.<module>.lora_A.weight`. Under tensor parallel B is split where the matrix is split by its rows, and A where
by its columns; the other half is whole on every process, and what travels between them has r columns.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from bigtrain.config import Config
from bigtrain.config.tasks import LoraConfig
from bigtrain.models.heads import HEAD, POOLER
from bigtrain.models.sharding import Box, ShardedParameter

A, B = "lora_A", "lora_B"
MODULES = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_q": ("q_proj",),
    "linear_kv": ("k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""What each of Megatron-core's matrices holds; without a gate `linear_fc1` is `up_proj` alone."""


class Adapted(nn.Module):
    """A matrix of Megatron-core's with its adapters; takes its place and its names."""

    def __init__(self, base: Any, lora: LoraConfig, widths: dict[str, int], groups: int) -> None:
        """
        Args:
            base: A column- or row-parallel linear layer.
            lora: What the adapters are.
            widths: Rows here of each module that the matrix holds.
            groups: So many stretches of rows lie one after the other, each with a part of every module in this order.
        """
        super().__init__()
        self.base, transformer = base, base.config
        self.in_parts = bool(transformer.sequence_parallel)  # the sequence, outside of attention and feed-forward
        self.by_rows = isinstance(base, ColumnParallelLinear)
        self.scale, self.dropout = lora.lora_alpha / lora.r, lora.lora_dropout
        self.widths, self.groups = widths, groups
        self.adapted = [m for m in widths if lora.target_modules == "all-linear" or m in lora.target_modules]
        weight: Any = base.weight
        for module in self.adapted:
            for half, shape in ((A, (lora.r, weight.shape[1])), (B, (widths[module], lora.r))):
                self.register_parameter(f"{module}_{half}", self._made(weight.new_empty(shape), half))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s, b, in] -> [s, b, out] and the bias that is still to be added, each as of the matrix alone."""
        said, bias = self.base(x)
        return said + self.scale * self._added(x), bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Where each parameter lies in the whole model; the matrix under the name that it has without adapters."""
        found: dict[str, Any] = self.base.sharded_state_dict(prefix, sharded_offsets, metadata)
        named = {f"{m}.{half}.weight": getattr(self, f"{m}_{half}") for m in self.adapted for half in (A, B)}
        axes = {name: 0 if self.by_rows else 1 for name in named if (B if self.by_rows else A) in name}
        return found | make_sharded_tensors_for_checkpoint(named, prefix, axes, sharded_offsets)

    def _made(self, empty: Tensor, half: str) -> nn.Parameter:
        parameter: Any = nn.Parameter(empty)
        parameter.tensor_model_parallel = half == (B if self.by_rows else A)
        # The half that is whole sees a part of the sequence alone.
        parameter.sequence_parallel = self.in_parts and not parameter.tensor_model_parallel
        return parameter

    def _added(self, x: Tensor) -> Tensor:
        if self.training and self.dropout:
            with self._stream():
                x = F.dropout(x, self.dropout)
        down = F.linear(x, torch.cat([getattr(self, f"{module}_{A}") for module in self.adapted]))
        narrow = dict(zip(self.adapted, self._across(down).chunk(len(self.adapted), -1), strict=True))
        added = [self._of_module(module, narrow) for module in self.widths]
        return torch.cat(added, -1).flatten(2)

    def _stream(self) -> AbstractContextManager[Any]:
        """Random numbers: of a part of the input each process draws its own, as it does under sequence parallelism
        without being told."""
        apart = not (self.by_rows or self.in_parts)
        return get_cuda_rng_tracker().fork() if apart else nullcontext()

    def _across(self, down: Tensor) -> Tensor:
        """What each process of the tensor group needs of x A, from what it has."""
        if self.by_rows:
            if self.in_parts:
                return gather_from_sequence_parallel_region(down)
            return copy_to_tensor_model_parallel_region(down)
        if self.in_parts:
            return reduce_scatter_to_sequence_parallel_region(down)
        return reduce_from_tensor_model_parallel_region(down)

    def _of_module(self, module: str, narrow: dict[str, Tensor]) -> Tensor:
        """[s, b, groups, its rows in each]"""
        if module in narrow:
            wide = F.linear(narrow[module], getattr(self, f"{module}_{B}"))
        else:
            some = next(iter(narrow.values()))
            wide = some.new_zeros(*some.shape[:2], self.widths[module])
        return wide.unflatten(-1, (self.groups, -1))


def add_adapters(chunks: Iterable[nn.Module], config: Config) -> None:
    """Put adapters beside the matrices of all layers that `finetune.lora` names."""
    lora = config.finetune.lora
    if lora is None:
        return
    wanted = lora.target_modules
    for chunk in chunks:
        for parent in [*chunk.modules()]:
            for name, widths, groups in _matrices(parent, config):
                if wanted == "all-linear" or set(wanted) & widths.keys():
                    setattr(parent, name, Adapted(getattr(parent, name), lora, widths, groups))


def _matrices(parent: nn.Module, config: Config) -> Iterator[tuple[str, dict[str, int], int]]:
    """The matrices right below a module: name, rows here of each module in it, and the groups that these lie in."""
    model, parts = config.model, config.parallel.tensor
    heads, kv_heads = model.num_attention_heads // parts, model.kv_heads // parts
    rows = {
        "q_proj": heads * model.head_size,
        **dict.fromkeys(("k_proj", "v_proj"), kv_heads * model.head_size),
        **dict.fromkeys(("o_proj", "down_proj"), model.hidden_size),
        **dict.fromkeys(("gate_proj", "up_proj"), model.ffn_size // parts),
    }
    for name, modules in MODULES.items():
        if name in parent._modules:
            kept = [module for module in modules if module != "gate_proj" or model.gated_mlp]
            yield name, {module: rows[module] for module in kept}, kv_heads if "kv" in name else 1


def freeze(parameters: Sequence[ShardedParameter], config: Config) -> None:
    """Mark what is not trained (`requires_grad`), as `finetune.lora` and `finetune.freeze` say."""
    for sharded in parameters:
        sharded.parameter.requires_grad_(is_trained(sharded.boxes[0], config))


def is_trained(box: Box, config: Config) -> bool:
    """Whether a weight of the model is trained, by one of its boxes."""
    options = config.finetune
    if not options.trained or box.key.startswith((HEAD, POOLER)) or is_adapter(box.key):
        return True
    if options.lora is not None or options.freeze == "all":
        return False
    if ".layers." not in box.key:
        return not box.key.startswith("embedding.")
    above = (
        config.model.num_hidden_layers if config.model.architecture == "t5" and box.key.startswith("decoder.") else 0
    )
    return options.freeze == "embeddings" or above + box.offset[0] >= int(options.freeze)


def is_adapter(name: str) -> bool:
    """Whether a weight of this name is an adapter's."""
    return name.endswith((f".{A}.weight", f".{B}.weight"))


def let_gradients_through(chunks: Iterable[Any]) -> None:
    """Have what a frozen embedding gives ask for a gradient: without one, recomputed layers would give their adapters
    none, and a pipeline's stage without anything to train could not hand any back."""
    for chunk in chunks:
        below = getattr(chunk, "body", chunk)
        if below.pre_process and not any(p.requires_grad for p in below.embedding.parameters()):
            below.embedding.register_forward_hook(_ask_for_gradient)


def _ask_for_gradient(module: nn.Module, args: Any, embedded: Tensor) -> None:
    if torch.is_grad_enabled():
        embedded.requires_grad_()
