"""What must hold before the first step and only files can tell: output, data, tokenizer, checkpoint.

Nothing here needs torch: the launcher looks before it starts any process.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigtrain.checkpoint.places import checkpoint_folder, is_local
from bigtrain.config import Config
from bigtrain.errors import ConfigError
from bigtrain.training.inputs import open_inputs


def preflight(config: Config, open_files: Callable[[Config], Any] = open_inputs) -> Any:
    """Make the run's folder, and open and check everything that the run reads; needs neither torch nor peers.

    `open_files` is the part that depends on what the run trains for; gives what it gives.

    Raises:
        UserError: Naming the key or file and what would be right.
    """
    _check_output(Path(config.training.output_dir))
    if config.checkpoint.dir is not None:
        _check_checkpoint_dir(checkpoint_folder(config))
    return open_files(config)


def _check_output(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(f"training.output_dir {output_dir} cannot be written: {error.strerror}") from None


def _check_checkpoint_dir(folder: Path) -> None:
    """Try to write there: else it would be known at the first checkpoint, hours later."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # each kind of storage has its own
        raise ConfigError(f"checkpoint.dir {folder} cannot be written: {error}") from None
