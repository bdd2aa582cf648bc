"""The mean of several checkpoints' weights, read and written a part at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.find import checkpoints_of, find_checkpoint
from bigtrain.convert.brought import Box, Brought, bring
from bigtrain.convert.family import OF_TRAINING
from bigtrain.convert.source import model_config, run_folder
from bigtrain.errors import CheckpointError, UserError


def average(
    run: Path, output: Path, *, last: int | None = None, steps: Sequence[int] = (), decay: float | None = None
) -> Brought:
    """Write the mean of a run's checkpoints as a new one, which a run can begin with and an export can take.

    Args:
        run: The run's folder, or the folder of its checkpoints.
        output: The folder to make; new or empty.
        last: So many of the newest complete checkpoints; default: all.
        steps: The steps of the checkpoints, in place of `last`.
        decay: An exponential mean in the order of the steps, m <- decay m + (1 - decay) w, beginning with the first;
            default: the uniform mean (arXiv:1803.05407).

    Raises:
        CheckpointError: There are fewer than two, one is damaged, or they are of different models.
        ConversionError: The output cannot be written.
        UserError: An option is out of its range.
    """
    if decay is not None and not 0 < decay < 1:
        raise UserError(f"--ema is {decay}; it must be between 0 and 1")
    if last is not None and steps:
        raise UserError("--last and --step choose checkpoints in two ways: give one of them")
    checkpoints = _chosen(run, last, steps)
    model = model_config(checkpoints[-1])
    newest = checkpoints[-1]
    for other in checkpoints:
        if _computed(other) != _computed(newest):
            raise CheckpointError(f"{other.path} and {newest.path} are checkpoints of different models")
    shares = _shares(len(checkpoints), decay)

    import torch

    from bigtrain.convert.weights import Weights

    opened = [Weights(checkpoint) for checkpoint in checkpoints]

    def read(box: Box) -> torch.Tensor:
        total = opened[0].read(*box).float().mul_(shares[0])  # each sum rounds once more than in float64, at half of it
        for share, weights in zip(shares[1:], opened[1:], strict=True):
            total.add_(weights.read(*box), alpha=share)
        return total

    found = run_folder(newest, run)
    tokenizer = None if found is None else found / "tokenizer"
    numbers = [checkpoint.state.step for checkpoint in checkpoints]
    return bring(
        output,
        model,
        opened[-1].shapes,
        read,
        what=f"the {'uniform' if decay is None else 'exponential'} mean of {len(numbers)} checkpoints, the steps "
        f"{', '.join(map(str, numbers))}",
        tokenizer=tokenizer if tokenizer is not None and tokenizer.is_dir() else None,
        origin={**newest.origin, "mean_of_steps": numbers, "ema": decay},
        state=newest.state,
    )


def _computed(checkpoint: Checkpoint) -> dict[str, Any]:
    """What decides which weights there are and what is computed with them."""
    return model_config(checkpoint).model_dump(exclude=set(OF_TRAINING))


def _chosen(run: Path, last: int | None, steps: Sequence[int]) -> list[Checkpoint]:
    """In the order of their steps."""
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder; give a run's folder")
    folder = checkpoints_of(run)
    if steps:
        paths = [catalog.folders(folder, step)[1] for step in sorted(set(steps))]
        missing = [path.name for path in paths if not path.is_dir()]
        if missing:
            there = ", ".join(path.name for path in catalog.complete(folder)) or "none"
            raise CheckpointError(f"{folder} has no {', '.join(missing)}; complete are: {there}")
    else:
        paths = catalog.complete(folder)[-(last or 0) :]
    if len(paths) < 2:
        raise CheckpointError(f"{folder}: a mean is of two checkpoints or more, and these are {len(paths)}")
    if last is not None and len(paths) < last:
        raise CheckpointError(f"{folder} holds {len(paths)} complete checkpoints, and --last is {last}")
    return [find_checkpoint(path) for path in paths]


def _shares(count: int, decay: float | None) -> list[float]:
    """What each counts; their sum is 1."""
    if decay is None:
        return [1 / count] * count
    return [decay ** (count - 1), *((1 - decay) * decay ** (count - 1 - i) for i in range(1, count))]
