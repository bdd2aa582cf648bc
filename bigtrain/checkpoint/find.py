"""The checkpoint that a user means by a folder. Nothing here needs torch."""

from pathlib import Path

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.places import checkpoint_folder
from bigtrain.config import load_config
from bigtrain.errors import CheckpointError

BEST = "best"
"""Where a run of fine-tuning keeps its best checkpoint."""


def find_best(path: Path) -> Checkpoint:
    """The checkpoint that a folder means, as :func:`find_checkpoint`; of a fine-tuned run its best.

    Raises:
        CheckpointError: There is none.
    """
    best = catalog.newest(path / BEST) if (path / BEST).is_dir() else None
    return best or find_checkpoint(path)


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that `path` means: the newest complete one of a run's folder or of its `checkpoints`
    folder, or the one in the step's folder itself.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a run's folder or one of its checkpoints")
    if path.name.startswith("step-") or (path / catalog.MARKER).exists():
        return catalog.read(path)
    folder = checkpoints_of(path)
    found = catalog.newest(folder)
    if found is None:
        unfinished = sorted(part.name for part in folder.glob("*step-*"))
        why = f" (incomplete: {', '.join(unfinished)})" if unfinished else ""
        raise CheckpointError(f"{folder} holds no complete checkpoint{why}; give a run's folder or one of its steps")
    return found


def checkpoints_of(path: Path) -> Path:
    """The folder of a run's checkpoints; `path` itself, if it is no run's."""
    if (path / "checkpoints").is_dir():
        return path / "checkpoints"
    return checkpoint_folder(load_config(path / "config.yaml")) if (path / "config.yaml").is_file() else path
