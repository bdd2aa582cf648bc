"""The joint: Megatron-core runs forward and backward, DeepSpeed reduces, clips and steps.

A training step is one call of Megatron-core's schedule inside one of DeepSpeed's coalesced
reductions. Between the last backward pass and the reduction, :func:`_reduce_shared` adds up the
gradients of parameters that several model-parallel processes hold a copy of.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from bigtrain.config import Config
from bigtrain.data.batch import Batch
from bigtrain.models.build import Chunk, build_model, tables_of_stages
from bigtrain.models.context import part_of_sequence
from bigtrain.models.experts import take_router_losses
from bigtrain.models.initialize import initialize_weights
from bigtrain.models.lora import add_adapters, freeze, let_gradients_through
from bigtrain.models.sharding import ShardedParameter, sharded_parameters
from bigtrain.parallel import compat
from bigtrain.parallel.deepspeed_config import deepspeed_config
from bigtrain.parallel.experts import NAME, ExpertGroups, lies_apart, set_experts_apart
from bigtrain.parallel.random import seed_step
from bigtrain.parallel.topology import Layout, MegatronGroups, any_rank

ForwardStep = Callable[[Iterator[Batch], "_Chunk"], tuple[Tensor, Any]]


@dataclass(frozen=True)
class StepResult:
    """What a step tells; the same on every rank."""

    loss: Tensor
    """Mean loss over the targets of the global batch, in nats; float32 scalar on the device. Of several kinds of
    targets the sum of their means."""
    grad_norm: Tensor
    """L2 norm of the whole model's gradient before clipping; float32 scalar."""
    kinds: dict[str, Tensor]
    """Mean loss over the targets of each kind, by name; float32 scalars."""
    router_losses: Tensor | None = None
    """Load-balancing loss and z-loss, the mean over layers and sequences, unweighted and not part of `loss`; [2]
    float32. None without experts."""
    source_losses: Tensor | None = None
    """Mean loss over the targets of each source of a mixture, of the first kind alone, NaN for one that has none in
    this step; [sources] float32."""


class Engine:
    """The model, its optimizer and both engines on this process."""

    def __init__(
        self, config: Config, layout: Layout, build: Callable[[Config], Sequence[Chunk]] = build_model
    ) -> None:
        """Build and initialise; the process groups must exist (`topology.start_processes`).

        `build` makes this process's chunks; :mod:`bigtrain.models.build` says what these must be.
        """
        self.config = config
        self.layout = layout
        seed_step(config.training.seed, 0, layout)
        self._draws = _draws(config)
        chunks = build(config)
        add_adapters(chunks, config)
        self.parameters: list[ShardedParameter] = sharded_parameters(chunks)
        initialize_weights(self.parameters, config.model, config.training.seed)
        freeze(self.parameters, config)
        if config.training.recompute == "full" or layout.pipeline > 1:
            let_gradients_through(chunks)
        self.tied_weight = _mark_for_norm(chunks, layout)
        self.stage_tables = tables_of_stages(chunks) if layout.pipeline > 1 else []
        self.zero = _deepspeed(config, layout, chunks)
        self.chunks = [_Chunk(self.zero, i, chunk) for i, chunk in enumerate(chunks)]

    def train_step(
        self, batches: Sequence[Batch], targets: float | Sequence[float], lr: float, step: int
    ) -> StepResult:
        """One optimizer step on the global batch of which `batches` is this process's part.

        Args:
            batches: Micro-batches of this data-parallel rank, of whole sequences whatever `parallel.context`.
            targets: Number of targets in the loss over the whole global batch; of each kind, where there are several.
            lr: Learning rate of this step.
            step: Number of this step, which decides its dropout.
        """
        self.zero.train()
        if self._draws:
            seed_step(self.config.training.seed, step, self.layout)
        for group in self.zero.optimizer.param_groups:
            group["lr"] = lr
        with self._one_reduction():
            of_kinds = [targets] if isinstance(targets, int | float) else list(targets)
            divisors = [count / (self.layout.data * len(batches)) for count in of_kinds]
            sums = self._run(batches, self._losses(divisors), forward_only=False)
            self._reduce_shared()
        self.zero.set_gradient_accumulation_boundary(True)
        self.zero.step()
        grad_norm = torch.as_tensor(self.zero.get_global_grad_norm(), dtype=torch.float32)
        totals, of_sources = self._sum_over_world(sums, len(of_kinds))
        means = [total / count for total, count in zip(totals, of_kinds, strict=True)]
        kinds = dict(zip(batches[0].kinds, means, strict=True))
        return StepResult(sum(means[1:], means[0]), grad_norm, kinds, self._router_losses(len(batches)), of_sources)

    @contextmanager
    def _one_reduction(self) -> Iterator[None]:
        """DeepSpeed's reduction of the step's gradients at the end of the block, unless the block fails.

        DeepSpeed would reduce even then, and wait for ever for peers that have not failed.
        """
        with self.zero.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                self.zero._flush_coalesced_reduction_zero12 = lambda _: None
                self.zero._flush_coalesced_reduction_zero3 = lambda _: None
                raise

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> Tensor:
        """Sum of the losses of all targets of the global batch, in nats, [kinds]; the same on every rank."""
        self.zero.eval()
        kinds = len(batches[0].kinds)
        totals, _ = self._sum_over_world(self._run(batches, self._losses([1.0] * kinds)), kinds)
        return totals

    @torch.no_grad()
    def predict(self, batches: Sequence[Batch], what: str = "predictions") -> list[Tensor]:
        """What the model says of each batch of this process, on the last stage of its pipeline; else nothing.

        `what` names the method of the chunks that says it, which gives hidden states before the last stage.
        """
        self.zero.eval()

        def forward_step(iterator: Iterator[Batch], chunk: "_Chunk") -> tuple[Tensor, Any]:
            said = chunk(on_device(next(iterator), self.layout), what)
            return said, lambda said: (said.new_zeros(()), said)

        return self._run(batches, forward_step)

    def trained_parameters(self) -> int:
        """How many numbers are trained, adapters and heads among them; all ranks call it, and get the same."""
        trained = [sharded for sharded in self.parameters if sharded.parameter.requires_grad]
        here = sum(box.numel for sharded in trained for box in sharded.boxes if box.is_first_copy)
        total = torch.tensor(here, device=compat.device())
        dist.all_reduce(total)
        return int(total) // self.layout.replicas

    def close(self) -> None:
        """Give up DeepSpeed's hooks and buffers, so that another engine can be built in this process."""
        self.zero.destroy()

    def _losses(self, divisors: Sequence[float]) -> ForwardStep:
        """What the schedule calls for each micro-batch and chunk; on the last stage it gives the sums of :func:`_sums`,
        and what is differentiated: each kind's sum divided by its divisor."""

        def forward_step(iterator: Iterator[Batch], chunk: "_Chunk") -> tuple[Tensor, Any]:
            batch = on_device(next(iterator), self.layout)

            def loss_function(losses: Tensor) -> tuple[Tensor, Tensor]:
                sums = _sums(losses, batch, len(self.config.data.sources))
                loss = torch.stack([of_kind / divisor for of_kind, divisor in zip(sums, divisors, strict=False)]).sum()
                return loss, sums.detach()  # the schedule divides the former in place

            return chunk(batch, "losses"), loss_function

        return forward_step

    def _run(self, batches: Sequence[Batch], forward_step: ForwardStep, forward_only: bool = True) -> list[Tensor]:
        """Megatron-core's schedule over the micro-batches; what `forward_step` gives of each, on the last stage.

        The schedule divides what is differentiated by the number of micro-batches, and multiplies it by
        `parallel.context`, for the reduction averages over these processes as well.
        """
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in self.chunks] if len(self.chunks) > 1 else iter(batches),
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(batches),
            seq_length=batches[0].length,
            micro_batch_size=len(batches[0].input_ids),
            forward_only=forward_only,
        )

    def _sum_over_world(self, sums: Sequence[Tensor], kinds: int) -> tuple[Tensor, Tensor | None]:
        """The sum of the losses of each kind, and the mean of each source's, from the sums of this process's
        micro-batches."""
        sources = len(self.config.data.sources)
        counts_here = self.layout.is_last_stage and self.layout.tensor_rank == 0
        nothing = torch.zeros(kinds + 2 * sources, device=compat.device())
        total = torch.stack(list(sums)).sum(0) if counts_here else nothing
        dist.all_reduce(total)
        losses, of_sources, counts = total.split([kinds, sources, sources])
        return losses, of_sources / counts if sources else None

    def _router_losses(self, micro_batches: int) -> Tensor | None:
        model = self.config.model
        if model.num_experts is None:
            return None
        total = take_router_losses(chunk.module for chunk in self.chunks)
        dist.all_reduce(total)
        return total / (model.num_hidden_layers * micro_batches * self.layout.data)

    def _reduce_shared(self) -> None:
        """Add up the gradients of parameters held by several model-parallel processes."""
        trained = [p for p in self.zero.module.parameters() if p.requires_grad]
        for parameter in self.zero.module.idle:
            parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        if norms := [p for p in trained if getattr(p, "sequence_parallel", False)]:
            _all_reduce([_gradient(p) for p in norms], parallel_state.get_tensor_model_parallel_group())
        if self.tied_weight is not None and self.tied_weight.requires_grad:
            _all_reduce([_gradient(self.tied_weight)], parallel_state.get_embedding_group())
        if any(table is not None and table.requires_grad for table in self.stage_tables):
            held = next(_gradient(table) for table in self.stage_tables if table is not None)
            gradients = [torch.zeros_like(held) if t is None else _gradient(t) for t in self.stage_tables]
            _all_reduce(gradients, parallel_state.get_pipeline_model_parallel_group())
        if self.layout.zero_stage == 0 and self.layout.replicas > 1:
            _all_reduce([_gradient(p) for p in trained], _replica_group(), divide_by=self.layout.replicas)


class _Chunk(nn.Module):
    """A chunk of the model as Megatron-core's schedule wants to see it; calls go through DeepSpeed's engine."""

    module: Chunk
    _zero: deepspeed.DeepSpeedEngine

    def __init__(self, zero: deepspeed.DeepSpeedEngine, index: int, chunk: Chunk) -> None:
        super().__init__()
        # Not registered as sub-modules: this is a view.
        object.__setattr__(self, "_zero", zero)
        object.__setattr__(self, "module", chunk)
        self.index = index
        self.config = chunk.config
        self.vp_stage = chunk.vp_stage

    def set_input_tensor(self, tensor: Tensor) -> None:
        self.module.set_input_tensor(tensor)

    def forward(self, batch: Batch, what: str) -> Tensor:
        return self._zero(self.index, batch, what)


class _Chunks(nn.Module):
    """What DeepSpeed owns: all chunks of this process."""

    def __init__(self, chunks: Sequence[Chunk], expert_groups: ExpertGroups | None) -> None:
        super().__init__()
        self.chunks = nn.ModuleList(chunks)
        self.expert_groups = expert_groups
        self.idle = nn.ParameterList()
        """Never used: see :func:`_adamw`."""

    def add_idle(self) -> nn.Parameter:
        """A parameter that nothing depends on and no norm counts."""
        some = next(self.chunks.parameters())
        idle = nn.Parameter(some.new_zeros(1))
        idle.model_parallel = False  # type: ignore[attr-defined]
        self.idle.append(idle)
        return idle

    def forward(self, index: int, batch: Batch, what: str) -> Tensor:
        method: Callable[[Batch], Tensor] = getattr(self.chunks[index], what)
        return method(batch)


def _deepspeed(config: Config, layout: Layout, chunks: Sequence[Chunk]) -> deepspeed.DeepSpeedEngine:
    experts = config.model.num_experts if config.parallel.experts_lie_apart else None
    if experts is not None:
        set_experts_apart(chunks)
    model = _Chunks(chunks, None if experts is None else ExpertGroups(experts))
    optimizer = _adamw(config, model)
    low_precision = config.training.precision == "bf16"
    if low_precision:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad_dtype = torch.float32  # autograd adds the micro-batches up in float32
    zero_group = _replica_group() if layout.zero_stage else _group_of_one()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config),
        mpu=MegatronGroups(zero_group),
        dist_init_required=False,
    )
    if low_precision and layout.zero_stage < 3:
        # Else DeepSpeed copies the float32 sums into a bf16 buffer before it reduces them in float32.
        engine.optimizer._gradient_reduction_buffer_dtype = lambda: torch.float32
    return engine


def _draws(config: Config) -> bool:
    """Whether a step draws random numbers."""
    lora = config.finetune.lora
    return max(config.model.hidden_dropout, config.model.attention_dropout, lora.lora_dropout if lora else 0) > 0


def _adamw(config: Config, model: _Chunks) -> torch.optim.AdamW:
    """AdamW whose weight decay touches matrices only.

    DeepSpeed wants the same groups on all processes, and none empty: where this one trains nothing that belongs in a
    group it gets a number that stays 0.
    """
    options = config.optimizer
    here = [p for p in model.parameters() if p.requires_grad and not lies_apart(p)]
    groups: list[dict[str, Any]] = []
    for of_group, decay in (
        ([p for p in here if p.ndim > 1], options.weight_decay),
        ([p for p in here if p.ndim <= 1], 0.0),
    ):
        if config.finetune.trained and any_rank(bool(of_group)) and not of_group:
            of_group.append(model.add_idle())
        if of_group:
            groups.append({"params": of_group, "weight_decay": decay})
    if apart := [p for p in model.parameters() if lies_apart(p)]:  # matrices all
        groups.append({"params": apart, "weight_decay": options.weight_decay, "name": NAME, "moe": True})
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=True)


def _replica_group() -> dist.ProcessGroup:
    """The processes that hold the same weights: those of data and of context parallel."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _group_of_one() -> dist.ProcessGroup:
    return dist.new_group([dist.get_rank()], use_local_synchronization=True)


def _mark_for_norm(chunks: Sequence[Chunk], layout: Layout) -> nn.Parameter | None:
    """Tell DeepSpeed which parameters count in this process's share of the gradient norm.

    A parameter that is split counts everywhere; a copy counts on the first tensor rank only. Copies that later stages
    hold do not count, the output layer's of tied embeddings among them: its gradient is the embedding's.

    Returns:
        The tied weight, where another pipeline stage holds it as well.
    """
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.model_parallel = getattr(parameter, "tensor_model_parallel", False) or layout.tensor_rank == 0
            if getattr(parameter, "is_stage_copy", False):
                _count_not(parameter)
    if layout.pipeline == 1 or not chunks[0].share_embeddings_and_output_weights:
        return None
    if chunks[0].pre_process:
        return chunks[0].shared_embedding_or_output_weight()
    if not chunks[-1].post_process:
        return None
    copy = chunks[-1].shared_embedding_or_output_weight()
    _count_not(copy)
    return copy


def _count_not(copy: nn.Parameter) -> None:
    copy.ds_pipe_replicated = True  # type: ignore[attr-defined]  # read by ZeRO 1 and 2
    copy.model_parallel = copy.tensor_model_parallel = False  # type: ignore[attr-defined]  # read by ZeRO 3


def _sums(losses: Tensor, batch: Batch, sources: int) -> Tensor:
    """[kinds + 2 · sources] float32: the sum of the losses of the targets of each kind; and of the first kind those of
    each source, and the weight of its targets."""
    masked = losses * batch.loss_mask
    kinds = torch.stack([part.sum() for part in masked.split([*batch.kinds.values()], 1)])
    if batch.sources is None:
        return torch.cat([kinds, kinds.new_zeros(2 * sources)]) if sources else kinds
    own = F.one_hot(batch.sources, sources).to(masked.dtype)  # [sequences, sources]
    first, *_ = batch.kinds.values()
    with torch.no_grad():
        of_sources = own.T @ torch.stack([masked[:, :first].sum(1), batch.loss_mask[:, :first].sum(1)], dim=1)
    return torch.cat([kinds, of_sources.T.flatten()])


def on_device(batch: Batch, layout: Layout) -> Batch:
    """This process's part of each sequence, on its device."""

    def here(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        part = part_of_sequence(value, layout.context_rank, layout.context) if value.ndim > 1 else value
        moved = part.to(compat.device(), non_blocking=True)
        # Made int64 on the device: what travels is as small as on disk.
        return moved if moved.is_floating_point() or moved.dtype == torch.bool else moved.long()

    return replace(batch, **{field.name: here(getattr(batch, field.name)) for field in fields(batch)})


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in every step"
    return parameter.grad


def _all_reduce(tensors: Sequence[Tensor], group: dist.ProcessGroup, divide_by: int = 1) -> None:
    """Sum (or average) tensors in place over a group, in one message."""
    flat = _flatten_dense_tensors(tensors)
    dist.all_reduce(flat, group=group)
    flat /= divide_by
    for tensor, reduced in zip(tensors, _unflatten_dense_tensors(flat, tensors), strict=True):
        tensor.copy_(reduced)
