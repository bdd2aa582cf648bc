"""`bigtrain pretrain` and `bigtrain finetune`."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bigtrain.cli.arguments import ConfigFile, Overrides
from bigtrain.config import Config
from bigtrain.errors import ConfigError

Processes = Annotated[
    int | None,
    typer.Option(help="Processes on this machine; default: one a GPU, else as many as one copy of the model needs."),
]


def pretrain(config: ConfigFile, overrides: Overrides = None, nproc: Processes = None) -> None:
    """Pretrain, or continue a run whose folder is there already."""
    from bigtrain.config import load_config
    from bigtrain.training.inputs import open_inputs

    loaded = load_config(config, overrides or [])
    if loaded.finetune.task is not None:
        raise ConfigError(f"{config}: finetune.task is {loaded.finetune.task}; run it with `bigtrain finetune`")
    words = ["pretrain", str(config), *(overrides or [])]
    _run(loaded, words, nproc, open_inputs, "bigtrain.training.pretrain:pretrain")


def finetune(config: ConfigFile, overrides: Overrides = None, nproc: Processes = None) -> None:
    """Fine-tune a model on labelled examples, or continue a run whose folder is there already."""
    from bigtrain.finetune.inputs import load_task_config, open_task

    loaded = load_task_config(config, overrides or [])
    if loaded.finetune.task is None:
        raise ConfigError(f"{config}: finetune.task is missing; `bigtrain pretrain` trains without one")
    words = ["finetune", str(config), *(overrides or [])]
    _run(loaded, words, nproc, open_task, "bigtrain.finetune.finetune:finetune")


def _run(
    config: Config, words: Sequence[str], nproc: int | None, open_files: Callable[[Config], Any], worker: str
) -> NoReturn:
    """Start what is to run: on a job's nodes, on this machine, or in this process, which is one of several.

    Args:
        config: The run's.
        words: Of the command, after `bigtrain`.
        nproc: As the user says.
        open_files: Opens and checks what the run reads.
        worker: `module:function` that runs it, and imports torch.
    """
    from bigtrain.config import validate
    from bigtrain.launch.environment import world_from_environment
    from bigtrain.launch.job import allocation, is_batch_step, supervise
    from bigtrain.launch.local import run_workers

    if is_batch_step(os.environ):
        from bigtrain.training.preflight import preflight

        given = allocation(config, nproc, os.environ)
        preflight(config, open_files)
        sys.exit(supervise(config, words, given))
    world = world_from_environment(nproc, os.environ, config.parallel.model_parallel_size)
    validate(config, world.world_size)
    if not world.is_worker:
        from bigtrain.training.preflight import preflight

        preflight(config, open_files)  # before torch is loaded and processes are started
    if world.is_worker or world.world_size == 1:
        module, _, function = worker.partition(":")
        sys.exit(getattr(import_module(module), function)(config))
    sys.exit(
        run_workers(
            [sys.executable, "-m", "bigtrain", *words],
            world,
            log_dir=Path(config.training.output_dir) / "logs",
        )
    )
