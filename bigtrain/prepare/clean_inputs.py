"""The files that a cleaning recipe reads, by kind."""

import gzip
import io
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from bigtrain.errors import DataError
from bigtrain.prepare.clean_recipe import Recipe

KINDS = {".jsonl": "lines", ".txt": "lines", ".md": "lines", ".parquet": "parquet", ".arrow": "arrow"}


def find_inputs(recipe: Recipe) -> tuple[Path, dict[str, list[str]], list[list[str | int]]]:
    """The folder that all inputs lie below; of each kind the files below it, by name; all files with their sizes.

    Raises:
        DataError: an input is missing or of no kind that can be read, or there is none.
    """
    roots = [Path(given).absolute() for given in recipe.inputs]
    for root in roots:
        if not root.exists():
            raise DataError(f"inputs: {root}: no such file or folder")
    base = Path(os.path.commonpath([root.parent for root in roots]))
    files = dict.fromkeys(file for root in roots for file in _below(root, recipe.pattern))
    if not files:
        raise DataError(
            f"inputs: no file in {', '.join(recipe.inputs)} matches {recipe.pattern!r} and is of {', '.join(KINDS)}"
        )
    lists: dict[str, list[str]] = {}
    for file in files:
        lists.setdefault(_kind(file), []).append(str(file.relative_to(base)))
    return base, lists, [[str(file.relative_to(base)), file.stat().st_size] for file in files]


def _below(root: Path, pattern: str) -> list[Path]:
    if root.is_file():
        if _ending(root) not in KINDS:
            raise DataError(f"inputs: {root}: neither of {', '.join(KINDS)}")
        return [root]
    inside = (path for path in root.rglob("*") if fnmatchcase(path.name, pattern) and _ending(path) in KINDS)
    return sorted(path for path in inside if path.is_file())


def _ending(path: Path) -> str:
    name = path.name
    for compression in (".gz", ".zst"):
        stripped = name.removesuffix(compression)
        if stripped != name and KINDS.get(Path(stripped).suffix) == "lines":
            name = stripped
    return Path(name).suffix


def _kind(path: Path) -> str:
    kind = KINDS[_ending(path)]
    if kind == "arrow":
        with path.open("rb") as file:
            return "arrow" if file.read(6) == b"ARROW1" else "arrow-stream"
    return kind


def open_compressed(path: Path) -> BinaryIO:
    """The content of a plain, `.gz` or `.zst` file.

    Raises:
        EOFError: while reading, a compressed file that is cut short; `zstandard`'s own reader ends without a word
            there, and after the first of several frames.
    """
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(path.open("rb")), 2**17)
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """The frames of a file, one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.frame: Any = None
        self.waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        compressed = b""
        while not self.waiting:
            compressed = compressed or self.file.read(2**17)
            if not compressed:
                if self.frame is not None:
                    raise EOFError("cut short")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.waiting = self.frame.decompress(compressed)
            compressed = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
                if compressed:
                    self.file.seek(-len(compressed), io.SEEK_CUR)
                    compressed = b""
        taken = self.waiting[: len(buffer)]
        self.waiting = self.waiting[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self.file.close()
        super().close()
