"""A folder that appears only when everything in it is written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bigtrain.errors import ConversionError


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into; it becomes `output` if the block ends well, and vanishes if not.

    Raises:
        ConversionError: `output` is neither new nor an empty folder, or cannot be written.
    """
    output = output.absolute()
    aside = output.with_name(output.name + ".writing")
    try:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise ConversionError(f"{output} exists already; remove it or choose another output folder")
        shutil.rmtree(aside, ignore_errors=True)  # left by a conversion that was killed
        aside.mkdir(parents=True)
        yield aside
        if output.exists():
            output.rmdir()
        aside.rename(output)
    except OSError as error:
        if error.filename and not Path(error.filename).absolute().is_relative_to(output.parent):
            raise  # another file's
        raise ConversionError(f"{output} cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:  # among others of a full disk
        raise ConversionError(f"{output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
