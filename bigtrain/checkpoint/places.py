"""Where checkpoints lie. Nothing here needs torch."""

from pathlib import Path

from bigtrain.config import Config
from bigtrain.data.places import is_local, place
from bigtrain.errors import ConfigError

__all__ = ["checkpoint_folder", "is_local", "place"]


def checkpoint_folder(config: Config) -> Path:
    """`checkpoint.dir`, or the default inside the run's folder.

    Raises:
        ConfigError: The URL is of a kind that nothing here can open.
    """
    if config.checkpoint.dir is None:
        return Path(config.training.output_dir) / "checkpoints"
    try:
        return place(config.checkpoint.dir)
    except ConfigError as error:
        raise ConfigError(f"checkpoint.dir: {error}") from None
