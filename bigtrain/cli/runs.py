"""`bigtrain pretrain` and `bigtrain finetune`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from bigtrain.cli.arguments import ConfigFile, Overrides, out
from bigtrain.config import Config
from bigtrain.errors import ConfigError

Processes = Annotated[
    int | None,
    typer.Option(help="Processes on this machine; default: one a GPU, else as many as one copy of the model needs."),
]


def pretrain(config: ConfigFile, overrides: Overrides = None, nproc: Processes = None) -> None:
    """Pretrain, or continue a run whose folder is there already."""
    from bigtrain.finetune.load import load_task_config

    loaded = load_task_config(config, overrides or [])
    if loaded.finetune.task is not None:
        raise ConfigError(f"{config}: finetune.task is {loaded.finetune.task}; run it with `bigtrain finetune`")
    _run("pretrain", loaded, nproc, "bigtrain.training.inputs:open_inputs", "bigtrain.training.pretrain:pretrain")


def finetune(
    config: ConfigFile,
    overrides: Overrides = None,
    nproc: Processes = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V...",
            help="One run for each value, one after the other, and a table of what each has reached on the held-out "
            "examples; several keys: each with each. Of values of training.seed mean and deviation are told.",
        ),
    ] = None,
) -> None:
    """Fine-tune a model on labelled examples, or continue a run whose folder is there already."""
    from bigtrain.finetune.load import load_task_config

    if sweep:
        _sweep(config, overrides or [], sweep, nproc)
    loaded = load_task_config(config, overrides or [])
    if loaded.finetune.task is None:
        raise ConfigError(f"{config}: finetune.task is missing; `bigtrain pretrain` trains without one")
    _run("finetune", loaded, nproc, "bigtrain.finetune.inputs:open_task", "bigtrain.finetune.finetune:finetune")


def _sweep(path: Path, overrides: Sequence[str], sweeps: Sequence[str], nproc: int | None) -> NoReturn:
    """The runs of a sweep, finished ones left as they are, and their table; ends as the first run that fails."""
    from bigtrain.checkpoint.places import place
    from bigtrain.finetune.load import load_task_config
    from bigtrain.finetune.sweep import settings
    from bigtrain.launch.sweep import own_places, variants
    from bigtrain.training.beginning import begins_in, is_hugging_face

    base = load_task_config(path, overrides)
    if not (base.finetune.validation or base.finetune.validation_fraction):
        raise ConfigError("--sweep compares runs by held-out examples: give finetune.validation")
    begin = base.checkpoint.initialize_from
    if begin is not None and is_hugging_face(place(begin)):  # converted once for all
        overrides = [*overrides, f"checkpoint.initialize_from={json.dumps(str(begins_in(base)))}"]
    chosen = [(v.name, [*overrides, *v.overrides, *own_places(base, v)]) for v in variants(sweeps)]
    configs = [(name, words, load_task_config(path, words)) for name, words in chosen]
    for name, words, _ in configs:
        out.print(name, style="bold", markup=False)
        told = [] if nproc is None else ["--nproc", str(nproc)]
        code = subprocess.run([sys.executable, "-m", "bigtrain", "finetune", str(path), *words, *told]).returncode
        if code:
            sys.exit(code)
    table = Table("", f"validation {base.finetune.metric}", "runs", box=None, highlight=False)
    for found in settings(base, [(Path(made.training.output_dir), name) for name, _, made in configs]):
        spread = "" if found.deviation is None else f" ± {found.deviation:.4f}"
        table.add_row(found.name, f"{found.mean:.4f}{spread}", str(len(found.values)))
    out.print(table)
    sys.exit(0)


def _run(command: str, config: Config, nproc: int | None, opener: str, worker: str) -> NoReturn:
    """Start what is to run: on a job's nodes, on this machine, or in this process, which is one of several.

    Args:
        command: That of this process, for others.
        config: The run's.
        nproc: As the user says.
        opener: `module:function` that opens and checks what the run reads; imported when the configuration is sound.
        worker: The same of what runs it, and imports torch.
    """
    from bigtrain.config import to_yaml, validate
    from bigtrain.launch.environment import world_from_environment
    from bigtrain.launch.job import allocation, is_batch_step, supervise
    from bigtrain.launch.local import run_workers

    words = [command, "-"]  # what this process has read and others need not read again comes as their input
    if is_batch_step(os.environ):
        from bigtrain.training.preflight import preflight

        given = allocation(config, nproc, os.environ)
        preflight(config, _function(opener))
        sys.exit(supervise(config, words, given))
    world = world_from_environment(nproc, os.environ, config.parallel.model_parallel_size)
    validate(config, world.world_size)
    if not world.is_worker and world.nnodes == 1:
        from bigtrain.training.preflight import preflight

        # Before torch is loaded and processes are started; of several nodes rank 0 looks for all.
        preflight(config, _function(opener))
    if world.is_worker or world.world_size == 1:
        sys.exit(_function(worker)(config))
    sys.exit(
        run_workers(
            [sys.executable, "-m", "bigtrain", *words],
            world,
            log_dir=Path(config.training.output_dir) / "logs",
            stdin=to_yaml(config),
        )
    )


def _function(place: str) -> Callable[[Config], Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
