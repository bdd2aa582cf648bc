"""Where checkpoints lie: a local folder, or any URL that fsspec can write. Nothing here needs torch."""

from pathlib import Path

from bigtrain.config import Config
from bigtrain.errors import ConfigError


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


def place(text: str) -> Path:
    """The folder or file that a user named; a URL becomes a `UPath`, which has a `Path`'s methods.

    Raises:
        ConfigError: The URL is of a kind that nothing here can open.
    """
    protocol, is_url, rest = text.partition("://")
    if not is_url:
        return Path(text)
    if protocol == "file":
        return Path(rest)
    try:
        from upath import UPath

        path = UPath(text, use_listings_cache=False)  # other processes write there as well
        path.fs  # noqa: B018 (imports what speaks the protocol)
    except ImportError as error:
        raise ConfigError(f"{text} needs a package that is missing ({error}): pip install 'bigtrain[remote]'") from None
    except ValueError as error:
        raise ConfigError(f"{text}: {error}") from None
    return path  # type: ignore[return-value]


def is_local(path: Path) -> bool:
    """Whether `path` is in this machine's file system, where folders can be renamed and synced."""
    return isinstance(path, Path)
