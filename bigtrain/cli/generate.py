"""`bigtrain generate`: text continued on the terminal."""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigtrain.cli.arguments import EarlyStopping, LengthPenalty, NumBeams, Stopping, beams, err, out
from bigtrain.errors import ConfigError, UserError

if TYPE_CHECKING:
    from bigtrain.config import ParallelConfig
    from bigtrain.evaluate.beams import Beams
    from bigtrain.evaluate.generate import Continuation


class Dtype(StrEnum):
    """Types of weights and of what is computed with them."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def generate(
    model: Annotated[
        str,
        typer.Argument(help="A run's folder (its newest checkpoint), one step's, or a Hugging Face folder."),
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be given several times.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with a prompt in each line, or JSON lines with a field `prompt`.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest continuation; default: 128, or what the model's positions leave.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token always.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw among so many likeliest tokens; 0: among all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts continued together.")] = 8,
    chat: Annotated[bool, typer.Option("--chat", help="Answer each prompt, by the folder's chat template.")] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the weights; default: float32, or what a Hugging Face folder says.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Where a checkpoint's run has none.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the continuations as JSON lines.")] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes on this machine that share a checkpoint's model.", min=1)
    ] = None,
    pipeline: Annotated[
        int, typer.Option(help="Stages of layers among the processes; within a stage they share matrices.", min=1)
    ] = 1,
    num_beams: NumBeams = 1,
    length_penalty: LengthPenalty = 1.0,
    early_stopping: Stopping = EarlyStopping.false,
) -> None:
    """Continue text with a run's checkpoint or an exported model."""
    from bigtrain.checkpoint.places import place
    from bigtrain.launch.environment import world_from_environment
    from bigtrain.launch.local import run_workers

    world = world_from_environment(nproc or (None if "RANK" in os.environ else pipeline), os.environ)
    parallel = _layout(world.world_size, pipeline)
    if not world.is_worker and world.world_size > 1:
        sys.exit(run_workers([sys.executable, "-m", "bigtrain", *sys.argv[1:]], world))
    from bigtrain.evaluate.generate import generate as continue_prompts
    from bigtrain.evaluate.generate import open_model
    from bigtrain.evaluate.sampling import Sampling

    how: Sampling | Beams = Sampling(temperature, top_k, top_p, seed)
    if num_beams != 1:
        how = beams(num_beams, length_penalty, early_stopping)
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output} cannot be written: {output.absolute().parent} is no folder")
    texts = _texts(prompt, prompts)
    opened = open_model(
        place(model), tokenizer=tokenizer, parallel=parallel, dtype=None if dtype is None else dtype.value
    )
    began = time.perf_counter()
    page = _Page(texts, shown=os.environ.get("RANK", "0") == "0")
    made = continue_prompts(
        opened,
        texts,
        how,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        chat=chat,
        told=page.told,
    )
    if page.shown:
        page.sum_up(made, time.perf_counter() - began)
        if output:
            _write(output, made)


def _texts(prompt: list[str] | None, prompts: Path | None) -> list[str]:
    found = [*(prompt or []), *(_read_prompts(prompts) if prompts else [])]
    if not found:
        raise UserError("there is nothing to continue: give --prompt TEXT or --prompts FILE")
    return found


def _layout(processes: int, pipeline: int) -> "ParallelConfig":
    from bigtrain.config import ParallelConfig

    if processes % pipeline:
        raise ConfigError(f"--pipeline {pipeline} does not divide the {processes} processes (--nproc)")
    return ParallelConfig(tensor=processes // pipeline, pipeline=pipeline)


class _Page:
    """The terminal: prompts in their order, of which the first unfinished is written on while it is made."""

    def __init__(self, prompts: Sequence[str], shown: bool) -> None:
        self.shown = shown
        self._prompts = prompts
        self._waiting: list[deque[str]] = [deque() for _ in prompts]
        self._current = 0
        self._begun = False

    def told(self, place: int, piece: str) -> None:
        """A piece of text of a prompt; an empty one is its end."""
        if not self.shown:
            return
        self._waiting[place].append(piece)
        while self._current < len(self._prompts) and self._write_current():
            self._current, self._begun = self._current + 1, False

    def _write_current(self) -> bool:
        """Write what there is of the current one; whether that was all of it."""
        waiting = self._waiting[self._current]
        if waiting and not self._begun:
            out.out(self._prompts[self._current], style="bold", end="", highlight=False)
            self._begun = True
        while waiting:
            piece = waiting.popleft()
            if not piece:
                out.print()
                return True
            out.out(piece, end="", highlight=False)
        return False

    def sum_up(self, made: "Sequence[Continuation]", seconds: float) -> None:
        """Beside the text, not in it."""
        tokens = sum(len(one.ids) + one.ended for one in made)
        err.print(f"{tokens} tokens in {seconds:.1f} s, the model's loading included", style="dim", markup=False)


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} cannot be read as text ({error})") from None
    if path.suffix != ".jsonl":
        return lines
    try:
        return [str(json.loads(line)["prompt"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--prompts {path}: every line must be an object with a field `prompt` ({error!r})") from None


def _write(path: Path, made: "Sequence[Continuation]") -> None:
    lines = [
        json.dumps({"prompt": one.prompt, "continuation": one.text, "tokens": len(one.ids), "ended": one.ended})
        for one in made
    ]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}") from None
