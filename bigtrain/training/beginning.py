"""Where `checkpoint.initialize_from` finds a checkpoint; of a Hugging Face folder one is made first. Nothing here needs
torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.places import is_local, place
from bigtrain.config import Config
from bigtrain.errors import ConversionError

INITIAL = "initial"
"""Where a run keeps what was made of a Hugging Face folder."""
_SOURCE = "source.json"
_OURS = ("checkpoints", "config.yaml", "model.yaml", catalog.MARKER)


def is_hugging_face(path: Path) -> bool:
    """Whether a folder holds a model of `transformers`, and none of ours."""
    return is_local(path) and (path / "config.json").is_file() and not any((path / name).exists() for name in _OURS)


def begins_in(config: Config) -> Path:
    """The folder or URL to look for the checkpoint in: what is given, or `initial` in the run's folder, written of a
    Hugging Face folder by `bigtrain convert from-hf` and verified, once a run.

    Raises:
        ConfigError: The URL is of a kind that nothing here can open.
        ConversionError: The folder cannot be converted.
    """
    given = place(config.checkpoint.initialize_from or "")
    made = Path(config.training.output_dir) / INITIAL
    known = _read(made / _SOURCE)
    if not is_local(given) or (not given.exists() and known.get("folder") != str(given.absolute())):
        return given
    if not given.exists():  # any more
        return made
    if not is_hugging_face(given):
        return given
    source = {"folder": str(given.absolute()), "files": _files(given), "vocab_size": config.model.vocab_size}
    if known != source:
        shutil.rmtree(made, ignore_errors=True)
        _convert(given, made, config.model.vocab_size)
        (made / _SOURCE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    return made


def _convert(folder: Path, made: Path, rows: int) -> None:
    """In a process of its own, which gives all of its memory back."""
    words = ["convert", "from-hf", str(folder), str(made), "--vocab-size", str(rows)]
    done = subprocess.run([sys.executable, "-m", "bigtrain", *words], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        what = done.stderr.strip().removeprefix("error: ") if done.returncode == 2 else f"a fault:\n{done.stderr}"
        raise ConversionError(f"{folder} cannot be made into a checkpoint: {what}")


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and time of what a conversion reads: not the contents, which are large."""
    found = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in found}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
