"""What this process holds of the global state, as boxes of global tensors.

DeepSpeed keeps float32 weights and Adam's moments in flat buffers, split over the data-parallel group
without regard to where a parameter begins. A flat range of a parameter is a few hyper-rectangles of
the global tensor it belongs to, and those are the chunks of torch's distributed checkpoint: nothing
has to be gathered to save, or to load under another layout.

This is the only file that reads DeepSpeed's internals.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.checkpoint.planners import PREFIXES, Holding
from bigtrain.checkpoint.rectangles import rectangles
from bigtrain.models.sharding import ShardedParameter
from bigtrain.parallel.engine import Engine


def holdings(engine: Engine, *, to_save: bool) -> list[Holding]:
    """The boxes this process loads, or its share of what is saved: there each box is written once."""
    _create_moments(engine)
    found: list[Holding] = []
    for sharded in engine.parameters:
        held = (_held_range if sharded.parameter.requires_grad else _frozen_range)(engine, sharded.parameter)
        if held is not None:
            found += _of_parameter(engine, sharded, *held, to_save=to_save)
    return found


def _of_parameter(
    engine: Engine, sharded: ShardedParameter, start: int, views: dict[str, Tensor], *, to_save: bool
) -> Iterator[Holding]:
    count = views["weight"].numel()
    low, high = start, start + count
    split = 3 if not sharded.parameter.requires_grad else 1  # the stage from which on replicas hold parts
    if to_save and engine.layout.zero_stage < split:  # every replica holds everything and writes its part
        low = count * engine.layout.replica_rank // engine.layout.replicas
        high = count * (engine.layout.replica_rank + 1) // engine.layout.replicas
    for box in sharded.boxes:
        if to_save and not box.is_first_copy:
            continue
        begin, end = max(low, box.start) - box.start, min(high, box.start + box.numel) - box.start
        for corner, size, flat in rectangles(box.shape, begin, end):
            offset = torch.Size(a + b for a, b in zip(box.offset, corner, strict=True))
            shape = torch.Size(size)
            for state, view in views.items():
                values = view.narrow(0, box.start + flat - start, shape.numel()).view(shape)
                yield Holding(PREFIXES[state] + box.key, torch.Size(box.global_shape), offset, shape, values)


def adam_step(engine: Engine) -> int:
    """Steps that Adam has counted (its bias correction depends on them)."""
    states = _adam(engine).state.values()
    steps = {int(state["step"]) for state in states if "step" in state}
    assert len(steps) <= 1, f"Adam's states disagree on the step: {steps}"
    return steps.pop() if steps else 0


def finish_load(engine: Engine, step: int) -> None:
    """After the holdings were filled: set Adam's step, and compute the weights that the forward pass uses."""
    for state in _adam(engine).state.values():
        state["step"].fill_(step)
    optimizer = engine.zero.optimizer
    if engine.layout.zero_stage == 3:
        optimizer.checkpoint_event_prologue()  # lets go of what is held whole, which is of before the load ...
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()  # ... and gathers the small parameters that stay whole
    else:
        optimizer.update_lp_params()


def _held_range(engine: Engine, parameter: nn.Parameter) -> tuple[int, dict[str, Tensor]] | None:
    """The flat range of `parameter` whose float32 state lies here: its start, and 1-D views of the state."""
    optimizer = engine.zero.optimizer
    if engine.layout.zero_stage == 3:
        group, begins, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = optimizer._get_param_partition_rank(parameter) * count
        count = max(0, min(count, parameter.ds_numel - start))  # type: ignore[attr-defined]  # the last is padded
    else:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        group, start = mapping.param_group_index, mapping.lp_fragment_address.start
        begins, count = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
    flat = _flat_weights(engine)[group]
    state = _adam(engine).state[flat]
    tensors = {"weight": flat.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    return start, {name: tensor.narrow(0, begins, count) for name, tensor in tensors.items()}


def _frozen_range(engine: Engine, parameter: nn.Parameter) -> tuple[int, dict[str, Tensor]] | None:
    """The same of a parameter that is not trained: its weights alone, in the type of `training.precision`, for there
    are no others."""
    if engine.layout.zero_stage < 3:
        return 0, {"weight": parameter.detach().view(-1)}
    here, whole = parameter.ds_tensor, parameter.ds_numel  # type: ignore[attr-defined]
    start = engine.zero.optimizer._get_param_partition_rank(parameter) * here.numel()
    count = max(0, min(here.numel(), whole - start))
    return start, {"weight": here.view(-1).narrow(0, 0, count)}


def _flat_weights(engine: Engine) -> list[Tensor]:
    """The tensors that Adam steps. Its `param_groups` do not tell: ZeRO-3 puts them there one at a time."""
    optimizer = engine.zero.optimizer
    if engine.layout.zero_stage == 3:
        return optimizer.fp32_partitioned_groups_flat
    return optimizer.single_partition_of_fp32_groups


def _adam(engine: Engine) -> Any:
    return engine.zero.optimizer.optimizer


def _create_moments(engine: Engine) -> None:
    """Make Adam's state where no step was taken yet; torch would make it at the first."""
    for flat in _flat_weights(engine):
        state = _adam(engine).state[flat]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            state["exp_avg"] = torch.zeros_like(flat)
            state["exp_avg_sq"] = torch.zeros_like(flat)
