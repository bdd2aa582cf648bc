"""Seconds per training step: bigtrain against plain PyTorch on `transformers`' Llama.

Both sides start from the same weights and train on the same batches, in one process with the same threads,
step by step in turn; who begins alternates. The plain loop is what a careful user writes: fused AdamW,
`clip_grad_norm_`, scaled dot product attention. `ratio` is the median of the pairs' ratios of wall time, `cpu_ratio`
that of CPU time, which other programs on the machine disturb less. Peak memory is measured for each side alone, in
a process of its own. With `--nproc`, the peer is DistributedDataParallel, or with `--zero-stage 3` FSDP2, its layers
sharded one by one; both sides reduce gradients once a step. Prints one JSON line, and fails where the two sides'
losses or gradient norms differ: then they did not do the same work.

    OMP_NUM_THREADS=2 python benchmarks/step_overhead.py
    OMP_NUM_THREADS=1 python benchmarks/step_overhead.py --nproc 2 --zero-stage 3
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from bigtrain.checkpoint import catalog, store
from bigtrain.config import Config, parse_config, validate
from bigtrain.data.loader import CausalBatch
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
from bigtrain.models.size import parameter_count
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine
from bigtrain.training.schedule import learning_rate

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "distributed"))
from plain import megatron_weights, write_checkpoint

LOSS_TOLERANCE = 1e-4
"""Relative difference of losses that the order of summation explains over some ten steps."""
NORM_TOLERANCE = 1e-2
"""The same of gradient norms: `clip_grad_norm_` adds up a large embedding's squares in float32 (seen: 2e-3 too low)."""

Step = Callable[[list[CausalBatch], int], tuple[float, float]]
"""A training step: micro-batches and the step's number to (loss, gradient norm before clipping)."""


@dataclass(frozen=True)
class Cost:
    """What one step took."""

    seconds: float
    cpu_seconds: float
    """Of all threads, in the program and in the kernel."""
    page_faults: int
    """Pages of memory that the kernel had to hand out or map."""


@dataclass
class Side:
    """One of the two, and what it has done so far."""

    step: Step
    costs: list[Cost]
    results: list[tuple[float, float]]

    def take(self, batches: list[CausalBatch], number: int) -> None:
        dist.barrier()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        self.results.append(self.step(batches, number))
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.costs.append(Cost(seconds, cpu, after.ru_minflt - before.ru_minflt))


def main() -> None:
    options = parse_options()
    if options.nproc > 1 and "RANK" not in os.environ:
        sys.exit(run_workers([sys.executable, *sys.argv], World(options.nproc)))
    config = run_config(options)
    topology.start_processes(config)
    if options.alone:
        print(memory_growth(config, options.alone))
        return
    ours, theirs = race(config, options.warmup)
    loss_difference, norm_difference = largest_differences(ours, theirs)
    if not (loss_difference <= LOSS_TOLERANCE and norm_difference <= NORM_TOLERANCE):
        sys.exit(f"void: losses differ by {loss_difference:.1e}, gradient norms by {norm_difference:.1e} (relative)")
    if dist.get_rank() > 0:
        topology.stop_processes()
        return
    alone = (
        {} if options.nproc > 1 else {side: {"peak_memory_bytes": run_alone(side)} for side in ("bigtrain", "plain")}
    )
    pairs = list(zip(ours.costs, theirs.costs, strict=True))
    result = {
        "benchmark": "step_overhead",
        "ratio": statistics.median(a.seconds / b.seconds for a, b in pairs),
        "cpu_ratio": statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in pairs),
        "peer": peer_name(options.nproc, options.zero_stage),
        "bigtrain": summary(ours, config) | alone.get("bigtrain", {}),
        "plain": summary(theirs, config) | alone.get("plain", {}),
        "loss_difference": loss_difference,
        "grad_norm_difference": norm_difference,
        "pairs": options.pairs,
        "nproc": options.nproc,
        "parameters": parameter_count(config.model),
        "model": config.model.model_dump(exclude_defaults=True),
        "sequence_length": config.training.sequence_length,
        "micro_batch_size": config.training.micro_batch_size,
        "micro_batches": options.micro_batches,
        "zero_stage": config.parallel.zero_stage,
        "threads": torch.get_num_threads(),
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "versions": {name: version(name) for name in ("torch", "megatron-core", "deepspeed", "transformers")},
    }
    print(json.dumps(result))
    topology.stop_processes()


def peer_name(nproc: int, zero_stage: int) -> str:
    if nproc == 1:
        return "plain PyTorch"
    return "FSDP2" if zero_stage == 3 else "DistributedDataParallel"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=30, help="counted steps of each side")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each side before those")
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=16384)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--nproc", type=int, default=1, help="processes, data parallel")
    parser.add_argument("--alone", choices=("bigtrain", "plain"), help="only measure this side's memory")
    return parser.parse_args()


def run_config(options: argparse.Namespace) -> Config:
    hidden = options.hidden_size
    model = {
        "vocab_size": options.vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "intermediate_size": 3 * hidden,
        "max_position_embeddings": options.sequence_length,
        "tie_word_embeddings": True,
    }
    training = {
        "output_dir": "unused",
        "steps": options.warmup + options.pairs,
        "global_batch_size": options.micro_batch_size * options.micro_batches * options.nproc,
        "micro_batch_size": options.micro_batch_size,
        "sequence_length": options.sequence_length,
        "precision": "fp32",
    }
    config = parse_config(
        {
            "model": model,
            "data": {"train": "unused"},
            "parallel": {"zero_stage": options.zero_stage},
            "schedule": {"warmup_steps": 2},
            "training": training,
        }
    )
    validate(config, world_size=options.nproc)
    return config


def race(config: Config, warmup: int) -> tuple[Side, Side]:
    """Both sides after all steps, with the costs of those that count: bigtrain, plain."""
    llama = plain_model(config)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(megatron_weights(llama), config.model.model_dump(mode="json"), Path(folder))
        ours = Side(bigtrain_step(config, Path(folder)), [], [])
    theirs = Side(plain_step(config, llama), [], [])
    for number in range(config.training.steps):
        batches = draw_batches(config, number)[dist.get_rank() :: dist.get_world_size()]
        for side in (ours, theirs) if number % 2 else (theirs, ours):
            side.take(batches, number)
    for side in (ours, theirs):
        del side.costs[:warmup]
    return ours, theirs


def largest_differences(ours: Side, theirs: Side) -> tuple[float, float]:
    """Largest relative difference, over all steps, of the loss and of the gradient norm."""
    results = torch.tensor([ours.results, theirs.results], dtype=torch.float64)
    loss, norm = (results[0] / results[1] - 1).abs().amax(dim=0).tolist()  # NaN stays NaN
    return loss, norm


def bigtrain_step(config: Config, checkpoint: Path | None) -> Step:
    """Our side: the engine, driven as the training loop drives it."""
    engine = Engine(config, topology.start_processes(config))
    if checkpoint is not None:
        store.load(catalog.read(checkpoint), engine)
    targets = config.training.global_batch_size * config.training.sequence_length

    def step(batches: list[CausalBatch], number: int) -> tuple[float, float]:
        result = engine.train_step(batches, targets, learning_rate(config, number), number)
        return float(result.loss), float(result.grad_norm)

    return step


def plain_model(config: Config) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = config.model
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            num_hidden_layers=model.num_hidden_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.kv_heads,
            intermediate_size=model.ffn_size,
            max_position_embeddings=model.max_position_embeddings,
            tie_word_embeddings=model.tie_word_embeddings,
            rope_theta=model.rope_theta,
            rms_norm_eps=model.norm_eps,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )


def plain_step(config: Config, model: LlamaForCausalLM) -> Step:
    """The peer: the loop that a user of PyTorch and `transformers` writes."""
    options = config.optimizer
    wrapped = distributed(config, model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=options.betas,
        eps=options.eps,
        fused=True,
    )
    wrapped.train()

    def step(batches: list[CausalBatch], number: int) -> tuple[float, float]:
        total = torch.zeros(())
        for batch in batches:
            with reduction(wrapped, batch is batches[-1]):
                logits = wrapped(batch.input_ids).logits
                loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()) / len(batches)
                loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, number)
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return total.item() / dist.get_world_size(), norm.item()

    return step


def distributed(config: Config, model: LlamaForCausalLM) -> torch.nn.Module:
    """The model as a user of PyTorch alone would spread it."""
    if dist.get_world_size() == 1:
        return model
    if config.parallel.zero_stage < 3:
        return DistributedDataParallel(model)
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


@contextmanager
def reduction(model: torch.nn.Module, last: bool) -> Iterator[None]:
    """Reduce gradients in the last micro-batch alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
        yield


def draw_batches(config: Config, step: int) -> list[CausalBatch]:
    """The step's micro-batches: tokens drawn with probability 1 / rank, as words roughly are."""
    generator = torch.Generator().manual_seed(step)
    training = config.training
    size = (training.global_batch_size, training.sequence_length + 1)
    odds = 1 / torch.arange(1, config.model.vocab_size + 1)
    tokens = torch.multinomial(odds, size[0] * size[1], replacement=True, generator=generator).view(size)
    positions = torch.arange(training.sequence_length).expand(training.micro_batch_size, -1).contiguous()
    return [
        CausalBatch(part[:, :-1].contiguous(), part[:, 1:].contiguous(), torch.ones(positions.shape), positions)
        for part in tokens.split(training.micro_batch_size)
    ]


def summary(side: Side, config: Config) -> dict[str, float]:
    seconds = [cost.seconds for cost in side.costs]
    tokens = config.training.global_batch_size * config.training.sequence_length
    return {
        "seconds_min": min(seconds),
        "seconds_median": statistics.median(seconds),
        "tokens_per_second": tokens / statistics.median(seconds),
        "cpu_seconds_median": statistics.median(cost.cpu_seconds for cost in side.costs),
        "page_faults_median": statistics.median(cost.page_faults for cost in side.costs),
    }


def run_alone(side: str) -> int:
    """`memory_growth` of a side in a fresh process with this one's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", side]
    done = subprocess.run(command, env=os.environ, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def memory_growth(config: Config, side: str) -> int:
    """Bytes that this process holds at most while it builds the model and takes three steps, above those before."""
    before = resident_bytes("VmRSS")
    step = bigtrain_step(config, None) if side == "bigtrain" else plain_step(config, plain_model(config))
    for number in range(3):
        step(draw_batches(config, number), number)
    return resident_bytes("VmHWM") - before


def resident_bytes(name: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process; `getrusage` would count the most its parent ever held as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
