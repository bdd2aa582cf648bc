"""Files kept on a node's disk, by content and within a bound; shared by its processes and by several runs.

    FOLDER/files/SHA256     whole, by the checksum of its bytes: equal files are one, and a changed one is another
    FOLDER/partial/SHA256   being fetched; whoever fetches holds a lock on it
    FOLDER/lock             held for the moment in which room is made

The locks are `flock`s on the files themselves, which end with the process that holds them: one that was killed leaves
a partial file that nobody holds, which the next takes over or removes. What lies in `files` is mapped by
readers; removing it there takes nothing from who has it mapped.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bigtrain.data.remote import Cancelled
from bigtrain.errors import DataError

_LOOK_SECONDS = 0.05
"""How often one that waits looks whether another has fetched the file."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Fetch = Callable[[BinaryIO], object]
"""Writes a file's content, from its begin; all of it is there when it returns."""


def default_folder() -> Path:
    """`bigtrain` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigtrain"


@dataclass(frozen=True)
class Cache:
    """A folder of at most `max_bytes`, but for what is being fetched: then the least recently opened files go.

    Where the disk has less room, that is the bound.
    """

    folder: Path = field(default_factory=default_folder)
    max_bytes: int = 2**36

    @contextmanager
    def file(self, sha256: str, size: int, fetch: Fetch, stop: threading.Event | None = None) -> Iterator[Path]:
        """The file of that content, fetched if it is not there; it stays there while the block lasts.

        One process fetches, others that want the same file wait for it.

        Raises:
            DataError: the folder cannot be written, or the disk is full.
            Cancelled: `stop` was set meanwhile.
        """
        try:
            held = self._held(sha256, size) or self._fetched(sha256, size, fetch, stop)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield self.folder / "files" / sha256
        finally:
            held.close()

    def check_room_for(self, size: int, name: str) -> None:
        """Raises:
        DataError: a shard of `size` bytes, of the dataset of that name, is larger than the bound.
        """
        if size > self.max_bytes:
            raise DataError(
                f"data.cache_bytes ({self.max_bytes}) cannot hold one shard of {name}, the largest of which has "
                f"{size} bytes; several times as much would do"
            )

    def keep(self, files: dict[str, bytes]) -> Path:
        """A folder with small files of these names and contents; they are never removed.

        Raises:
            DataError: the folder cannot be written, or the disk is full.
        """
        digest = hashlib.sha256()
        for name, content in files.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        folder = self.folder / "small" / digest.hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                aside = folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
                aside.write_bytes(content)
                aside.rename(folder / name)  # as it was, where another has put it there
        except OSError as error:
            raise self._unusable(error) from error
        return folder

    @contextmanager
    def scratch(self) -> Iterator[BinaryIO]:
        """A named file to write and read, on the cache's disk; gone when the block ends.

        Raises:
            DataError: the folder cannot be written, or the disk is full.
        """
        try:
            (self.folder / "scratch").mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder / "scratch") as file:
                yield file  # type: ignore[misc]
        except OSError as error:
            raise self._unusable(error) from error

    def drop_if_damaged(self, sha256: str) -> bool:
        """Remove the file of that name if its content is another, as after a power cut; whether it was."""
        path = self.folder / "files" / sha256
        try:
            with path.open("rb") as file:
                damaged = hashlib.file_digest(file, "sha256").hexdigest() != sha256
        except FileNotFoundError:  # another has seen it first
            return True
        if damaged:
            path.unlink(missing_ok=True)
        return damaged

    def _held(self, sha256: str, size: int) -> BinaryIO | None:
        """The file, locked against removal, and marked as used; None if it is not there."""
        path = self.folder / "files" / sha256
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)  # against an eviction, which takes a moment
        if not _is_at(file, path) or os.fstat(file.fileno()).st_size != size:
            file.close()
            return None
        os.utime(path)
        return file

    def _fetched(self, sha256: str, size: int, fetch: Fetch, stop: threading.Event | None) -> BinaryIO:
        path, partial = self.folder / "files" / sha256, self.folder / "partial" / sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.parent.mkdir(exist_ok=True)
        pause = stop or threading.Event()
        while True:
            file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            if not _try_lock(file):  # another fetches it
                file.close()
                if pause.wait(_LOOK_SECONDS):
                    raise Cancelled
                continue
            try:
                if not _is_at(file, partial):  # another has just fetched it, or given up
                    file.close()
                elif held := self._held(sha256, size):
                    partial.unlink()
                    file.close()
                    return held
                else:
                    self._make_room(partial, size, file)
                    fetch(file)
                    file.flush()
                    partial.rename(path)
                    fcntl.flock(file, fcntl.LOCK_SH)
                    return file
            except BaseException:
                partial.unlink(missing_ok=True)
                file.close()
                raise
            if held := self._held(sha256, size):
                return held

    def _make_room(self, partial: Path, size: int, file: BinaryIO) -> None:
        """Reserve `size` bytes for `file`, and remove what was opened longest ago until all is within the bound."""
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file.truncate(size)
            for left in partial.parent.iterdir():
                if left != partial:
                    _remove(left)  # unless somebody is at it
            coming = sum(status.st_size for _, status in _listed(partial.parent))
            stored = _listed(partial.parent.with_name("files"))
            total = coming + sum(status.st_size for _, status in stored)
            excess = max(total - self.max_bytes, size - shutil.disk_usage(self.folder).free)
            for path, status in sorted(stored, key=lambda entry: entry[1].st_mtime_ns):
                if excess <= 0:
                    break
                if _remove(path):
                    excess -= status.st_size

    def _unusable(self, error: OSError) -> DataError:
        if error.errno in _FULL:
            free = shutil.disk_usage(self.folder).free
            return DataError(
                f"{self.folder}: no room for what is streamed ({error.strerror}; {free} bytes are free there, and "
                f"data.cache_bytes is {self.max_bytes}); make room, or set data.cache_dir to a larger disk"
            )
        return DataError(
            f"{self.folder}: the cache of what is streamed cannot be used ({error.strerror}); "
            "set data.cache_dir to a folder on the node's own disk that may be written"
        )


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _listed(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The files of a folder, but for those that vanish meanwhile."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return found


def _remove(path: Path) -> bool:
    """Remove a file unless somebody holds a lock on it; whether it went."""
    try:
        with path.open("rb") as file:
            if not (_try_lock(file) and _is_at(file, path)):
                return False
            path.unlink()
    except FileNotFoundError:
        return False
    return True
