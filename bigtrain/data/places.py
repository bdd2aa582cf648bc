"""Where files lie: a local folder, or any URL that fsspec speaks. Nothing here needs torch."""

from pathlib import Path
from typing import Any

from bigtrain.errors import ConfigError


def place(text: str, **storage_options: Any) -> Path:
    """The folder or file that a user named; a URL becomes a `UPath`, which has a `Path`'s methods.

    Args:
        text: A path, or a URL.
        storage_options: What the file system of a URL is made with.

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

        path = UPath(text, use_listings_cache=False, **storage_options)  # other processes write there as well
        path.fs  # noqa: B018 (imports what speaks the protocol)
    except ImportError as error:
        raise ConfigError(f"{text} needs a package that is missing ({error}): pip install 'bigtrain[remote]'") from None
    except ValueError as error:
        raise ConfigError(f"{text}: {error}") from None
    return path


def is_local(path: Path) -> bool:
    """Whether `path` is in this machine's file system, where folders can be renamed and synced."""
    return isinstance(path, Path)
