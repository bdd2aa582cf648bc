"""A pretraining run on this process, from the configuration to the exit code."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog, store
from bigtrain.checkpoint.places import checkpoint_folder
from bigtrain.checkpoint.saver import Saver
from bigtrain.config import Config, to_yaml
from bigtrain.data.batch import BatchSource
from bigtrain.data.samples import TokenSource
from bigtrain.data.tokenizer import copy_tokenizer
from bigtrain.errors import EXIT_REQUEUE, UserError
from bigtrain.models.size import parameter_count
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine
from bigtrain.parallel.topology import Layout
from bigtrain.training import faults, records
from bigtrain.training.dashboard import Dashboard
from bigtrain.training.inputs import RunInputs, open_inputs
from bigtrain.training.loop import Run, train, validate_text
from bigtrain.training.preflight import preflight
from bigtrain.training.progress import ProgressLine
from bigtrain.training.signals import StopRequest
from bigtrain.training.watchdog import Watchdog


@dataclass(frozen=True)
class Purpose:
    """What a run trains for, as far as runs differ by it. `inputs` are what `open` gives."""

    open: Callable[[Config], Any]
    """Opens and checks what the run reads, without torch: :class:`bigtrain.training.inputs.RunInputs`."""
    engine: Callable[[Config, Layout, Any], Engine]
    """The model."""
    samples: Callable[[Config, Any], TokenSource | BatchSource]
    validate: Callable[[Run], bool]
    """After some of the steps; gives whether training should end."""
    begin: Callable[[catalog.Checkpoint, Engine], None] = store.load_weights
    """Fills the model of a new run with the weights that it begins with."""
    settled: Callable[[Config, Any], Config] = lambda config, _: config
    """The configuration with what only the inputs tell."""
    is_done: Callable[[Config, Any], bool] = lambda config, inputs: _all_steps_done(config, inputs)
    """Whether there is nothing left to do."""


def _all_steps_done(config: Config, inputs: Any) -> bool:
    return inputs.checkpoint is not None and inputs.checkpoint.state.step == config.training.steps


PRETRAINING = Purpose(
    open=open_inputs,
    engine=lambda config, layout, _: Engine(config, layout),
    samples=lambda _, inputs: inputs.reads,
    validate=validate_text,
)


def pretrain(config: Config, purpose: Purpose = PRETRAINING) -> int:
    """Start or continue the run in `training.output_dir`; every process of the world calls it.

    Returns:
        0 when the last step is done, 75 when the run was asked to stop and waits to be continued.

    Raises:
        UserError: On every rank, before the first step.
    """
    faults.catch_crashes()
    with StopRequest() as stop:
        layout = topology.start_processes(config)
        try:
            inputs = _inputs(config, layout, purpose)
        except UserError:
            topology.stop_processes()  # every rank raises it: nobody is waiting
            raise
        config = purpose.settled(config, inputs)
        if purpose.is_done(config, inputs):
            ProgressLine(config.training.steps, 0, shown=layout.rank == 0).say(
                f"{config.training.output_dir}: step {inputs.checkpoint.state.step} is the last and is done; "
                "raise training.steps to go on"
            )
            topology.stop_processes()
            return 0
        output_dir = Path(config.training.output_dir)
        with Watchdog(config.training.step_timeout, output_dir, layout.rank, layout.world_size) as watchdog:
            run = _start(config, layout, inputs, purpose, stop, watchdog)
            with closing(run.saver):
                finished = train(run)
            watchdog.feed("the end of the run", run.state.step, long=True)
            exit_code = _end(run, finished)
    return exit_code


def _end(run: Run, finished: bool) -> int:
    """Close what is open, on all ranks; gives the exit code."""
    details: dict[str, Any] = {} if finished else {"signal": run.stop.received}
    run.event("stop" if finished else "preempt", **details)
    exit_code = 0 if finished else EXIT_REQUEUE
    run.inputs.close()
    run.progress.close()
    if run.dashboard is not None:
        run.dashboard.close(exit_code)
    topology.stop_processes()
    return exit_code


def _inputs(config: Config, layout: Layout, purpose: Purpose) -> Any:
    """Rank 0 reads for all: one mistake is one message, and a thousand ranks ask no more of a file system than one."""
    inputs = None
    with topology.together():
        if layout.rank == 0:
            inputs = preflight(config, purpose.open)
    return topology.from_first(inputs)


def _start(config: Config, layout: Layout, inputs: Any, purpose: Purpose, stop: StopRequest, watchdog: Watchdog) -> Run:
    output_dir = Path(config.training.output_dir)
    log = records.log_to_file(output_dir, layout.rank)
    log.info("layout %s, rank %d", layout.describe(), layout.rank)
    if layout.rank == 0:
        _record_inputs(config, inputs, output_dir)
    step = inputs.checkpoint.state.step if inputs.checkpoint else 0
    watchdog.feed("building the model and reading the checkpoint", step, long=True)
    engine = purpose.engine(config, layout, inputs)
    resumed, initial = inputs.checkpoint, inputs.initial
    state = resumed.state if resumed else catalog.TrainingState(step=0, position=0, tokens=0)
    began = time.perf_counter()
    if resumed:
        store.load(resumed, engine)
    elif initial:
        purpose.begin(initial, engine)
    loaded_seconds = time.perf_counter() - began
    options = config.checkpoint
    saver = Saver(
        checkpoint_folder(config),
        engine,
        inputs.data_identity,
        keep_last=options.keep_last,
        keep_every=options.keep_every,
        in_background=options.async_save,
        origin=_origin(resumed, initial),
        completed=lambda saved: run.checkpoint_completed(saved),
    )
    run = Run(
        config=config,
        layout=layout,
        output_dir=output_dir,
        inputs=inputs,
        engine=engine,
        saver=saver,
        state=state,
        stop=stop,
        watchdog=watchdog,
        log=log,
        progress=ProgressLine(config.training.steps, state.step, shown=layout.rank == 0),
        dashboard=Dashboard(config, output_dir) if layout.rank == 0 else None,
        samples=purpose.samples(config, inputs),
        validate=purpose.validate,
    )
    _announce(run, resumed, loaded_seconds)
    return run


def _origin(resumed: catalog.Checkpoint | None, initial: catalog.Checkpoint | None) -> dict[str, Any]:
    """Where the run's first weights came from, for its checkpoints to say."""
    if resumed:
        return resumed.origin
    if initial:
        return initial.origin or {"checkpoint": str(initial.path), "step": initial.state.step}
    return {}


def _record_inputs(config: Config, inputs: RunInputs, output_dir: Path) -> None:
    """Make the run's folder enough to run again and to read its checkpoints."""
    (output_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    folder = output_dir / "tokenizer"
    folder.mkdir(exist_ok=True)
    copy_tokenizer(inputs.tokenizer, folder)
    step = inputs.checkpoint.state.step if inputs.checkpoint else 0
    records.forget_after(output_dir / records.METRICS, step)


def _slurm_job() -> dict[str, Any]:
    """Which job this is, and how often Slurm has started it before."""
    job_id = records.slurm_job_id(os.environ)
    if job_id is None:
        return {}
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return {"slurm_job_id": job_id, "slurm_restart_count": restarts}


def _announce(run: Run, resumed: catalog.Checkpoint | None, loaded_seconds: float) -> None:
    layout = run.layout.describe()
    job = _slurm_job()
    stages = {"stages": run.inputs.data_identity["stages"]} if "stages" in run.inputs.data_identity else {}
    if resumed:
        loaded: dict[str, Any] = {"loaded_seconds": round(loaded_seconds, 3)}
        run.event("resume", layout=layout, saved_with=resumed.layout, **loaded, **job, **stages)
        if stages and resumed.data.get("stages") != stages["stages"]:
            run.event("mixture", was=resumed.data.get("stages"), now=stages["stages"])
    else:
        details: dict[str, Any] = {**run.inputs.told(), **job, **stages}
        if run.inputs.initial:
            details["initialized_from"] = str(run.inputs.initial.path)
        run.event("start", layout=layout, **details)
    axes = " x ".join(
        f"{name} {layout[name]}" for name in ("tensor", "context", "pipeline", "expert", "data") if layout[name] > 1
    )
    for note in run.inputs.notes():
        run.progress.say(note)
    begin = "starting" if run.inputs.initial is None else f"starting with the weights of {run.inputs.initial.path}"
    begin = f"resumed at step {run.state.step} from {resumed.path}" if resumed else begin
    trained = f"{run.engine.trained_parameters():,} trained, " if run.config.finetune.trained else ""
    run.progress.say(
        f"{run.output_dir}: {begin}; {parameter_count(run.config.model):,} parameters, {trained}"
        f"{run.layout.world_size} process{'es' if run.layout.world_size > 1 else ''}"
        f"{f' ({axes}, ZeRO-{run.layout.zero_stage})' if axes else ''}"
    )
