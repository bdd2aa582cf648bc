"""The training loop."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.saver import Saved, Saver
from bigtrain.config import Config
from bigtrain.data.batch import BatchSource
from bigtrain.data.loader import prefetch
from bigtrain.data.mixture import Mixture
from bigtrain.data.samples import TokenSource
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine, StepResult
from bigtrain.parallel.topology import Layout
from bigtrain.training import records
from bigtrain.training.batches import BatchReader
from bigtrain.training.dashboard import Dashboard
from bigtrain.training.progress import ProgressLine
from bigtrain.training.schedule import learning_rate
from bigtrain.training.signals import StopRequest
from bigtrain.training.throughput import model_flops_utilization, peak_memory_bytes
from bigtrain.training.validation import validate
from bigtrain.training.watchdog import Watchdog


@dataclass
class Run:
    """A run in progress on this rank."""

    config: Config
    layout: Layout
    output_dir: Path
    inputs: Any
    """See :class:`bigtrain.training.inputs.RunInputs`; the purpose's functions know more of it."""
    engine: Engine
    saver: Saver
    state: catalog.TrainingState
    stop: StopRequest
    watchdog: Watchdog
    log: logging.Logger
    progress: ProgressLine
    dashboard: Dashboard | None
    """On rank 0 alone."""
    samples: TokenSource | BatchSource
    """What is trained on, by position."""
    validate: Callable[["Run"], bool]
    """Judges the model by what is held out; gives whether training should end."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the records."""
        return self.layout.rank == 0

    def event(self, name: str, step: int | None = None, **details: Any) -> None:
        """Record an event of this step, or of another, once."""
        if self.is_first:
            step = self.state.step if step is None else step
            records.event(self.output_dir, name, step, self.layout.world_size, **details)
            self.log.info("%s at step %d %s", name, step, details or "")

    def checkpoint_completed(self, saved: Saved) -> None:
        """Record a checkpoint, which may be of an earlier step, when it is complete."""
        seconds = {k: round(v, 3) for k, v in vars(saved).items() if k.endswith("_seconds")}
        inside = self.output_dir in saved.path.parents
        path = saved.path.relative_to(self.output_dir) if inside else saved.path
        self.event("checkpoint", saved.step, path=str(path), **seconds)


def train(run: Run) -> bool:
    """Train to the last step or until asked to stop; either way the last step done is saved.

    Returns:
        Whether the run is finished.
    """
    config, steps = run.config, run.config.training.steps
    meter = _Meter()
    read = BatchReader(config, run.layout, run.samples)
    batches = _batches(run, read)
    stopping = enough = False
    began_at = run.state.step
    while run.state.step < steps and not (stopping or enough):
        run.watchdog.feed(f"step {run.state.step + 1}", run.state.step, long=run.state.step == began_at)
        meter.start()
        micro = next(batches)
        meter.data_arrived()
        step = run.state.step
        lr = learning_rate(config, step)
        result = run.engine.train_step(micro, read.targets(micro), lr, step)
        tokens = read.tokens(micro)
        run.state = _after_step(run.state, config, tokens)
        _announce_stage(run)
        _record(run, result, lr, meter, tokens)

        enough = _due(run.state.step, config.training.validation_interval, steps) and run.validate(run)
        stopping = topology.any_rank(run.stop.received is not None)
        if stopping or enough or _due(run.state.step, config.checkpoint.interval, steps):
            run.watchdog.feed(f"the checkpoint of step {run.state.step}", run.state.step, long=True)
            run.saver.save(run.state)
        else:
            run.saver.poll()
    run.watchdog.feed("the wait for the last checkpoint", run.state.step, long=True)
    run.saver.finish()
    batches.close()
    return enough or run.state.step >= steps


def _due(step: int, interval: int, last: int) -> bool:
    return step == last or (interval > 0 and step % interval == 0)


def _after_step(state: catalog.TrainingState, config: Config, tokens: int) -> catalog.TrainingState:
    return catalog.TrainingState(
        step=state.step + 1,
        position=state.position + config.training.global_batch_size,
        tokens=state.tokens + tokens,
    )


def _batches(run: Run, read: BatchReader) -> Any:
    """This rank's micro-batches of each step still to do, read one step ahead."""
    sequences = run.config.training.global_batch_size
    left = run.config.training.steps - run.state.step
    return prefetch(read, range(run.state.position, run.state.position + left * sequences, sequences))


def _announce_stage(run: Run) -> None:
    """Record that the next step begins a stage of the mixture."""
    if isinstance(run.inputs.train, Mixture):
        for stage in run.inputs.train.stages:
            if stage.first_position == run.state.position:
                run.event("stage", shares={name: round(float(share), 6) for name, share in stage.shares.items()})


def _record(run: Run, result: StepResult, lr: float, meter: "_Meter", tokens: int) -> None:
    config, step = run.config, run.state.step
    if not _due(step, config.logging.interval, config.training.steps):
        meter.step_queued()
        return
    loss, grad_norm = float(result.loss), float(result.grad_norm)  # waits for the accelerator
    step_seconds, data_seconds = meter.step_done()
    if not run.is_first:
        return
    tokens_per_second = tokens / step_seconds
    row = {
        "step": step,
        "tokens": run.state.tokens,
        "loss": loss,
        "grad_norm": grad_norm,
        **_kinds(result),
        **_router_losses(result),
        **_of_sources(run, result),
        "learning_rate": lr,
        "step_seconds": step_seconds,
        "data_seconds": data_seconds,
        "tokens_per_second": tokens_per_second,
        "model_flops_utilization": model_flops_utilization(config, tokens_per_second, run.layout.world_size),
        "memory_bytes": peak_memory_bytes(),
    }
    publish(run, row)
    run.progress.update(row)


def _kinds(result: StepResult) -> dict[str, float]:
    """The loss of each kind of target, where there are several."""
    return {f"{kind}_loss": float(loss) for kind, loss in result.kinds.items()} if len(result.kinds) > 1 else {}


def _router_losses(result: StepResult) -> dict[str, float]:
    if result.router_losses is None:
        return {}
    return dict(zip(("router_aux_loss", "router_z_loss"), result.router_losses.tolist(), strict=True))


def _of_sources(run: Run, result: StepResult) -> dict[str, float | int | None]:
    """Loss and tokens read so far of each source of a mixture."""
    if result.source_losses is None or not isinstance(run.inputs.train, Mixture):
        return {}
    counts = run.inputs.train.counts(run.state.position)
    length = run.config.training.sequence_length
    losses = dict(zip(counts, result.source_losses.tolist(), strict=True))
    return {f"loss/{name}": loss for name, loss in losses.items()} | {
        f"tokens/{name}": count * length for name, count in counts.items()
    }


def publish(run: Run, row: dict[str, Any]) -> None:
    """Put a row of figures where all others are; on rank 0."""
    records.append(run.output_dir / records.METRICS, row)
    if run.dashboard is not None:
        run.dashboard.log(row)


def validate_text(run: Run) -> bool:
    """Measure the loss on held-out text. Never ends training."""
    if run.inputs.validation is None:
        return False
    step = run.state.step
    feed = partial(run.watchdog.feed, f"a batch of the validation after step {step}", step)
    row = {"step": step, **validate(run.engine, run.config, run.inputs.validation, run.inputs.reads_validation, feed)}
    run.event("evaluate", validation_loss=row["validation_loss"])
    if run.is_first:
        publish(run, row)
        bits = row.get("validation_bits_per_byte")
        run.progress.say(
            f"step {step}: validation loss {row['validation_loss']:.4f}"
            + ("" if bits is None else f", {bits:.4f} bits per byte")
        )
    return False


class _Meter:
    """Seconds of the steps since the last row, without validation and saving."""

    def __init__(self) -> None:
        self._began = 0.0
        self._steps = 0
        self._seconds = self._data_seconds = 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    def data_arrived(self) -> None:
        self._data_seconds += time.perf_counter() - self._began

    def step_queued(self) -> None:
        self._seconds += time.perf_counter() - self._began
        self._steps += 1

    def step_done(self) -> tuple[float, float]:
        """Mean seconds of a step and of its wait for data; starts a new row."""
        self.step_queued()
        means = self._seconds / self._steps, self._data_seconds / self._steps
        self._steps, self._seconds, self._data_seconds = 0, 0.0, 0.0
        return means
