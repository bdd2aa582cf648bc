"""A dataset's folder behind a URL: read in pieces, and again after whatever passes."""

import hashlib
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from bigtrain.data.places import place
from bigtrain.errors import ConfigError, DataError

T = TypeVar("T")

_PIECE = 16 * 2**20
"""Bytes asked for at once: what a cut connection costs, and what is in memory."""
_ARRIVALS = 3
"""Times that a file is fetched whole before a checksum that differs is held to be the file's own."""
_CONNECT_SECONDS, _SILENCE_SECONDS = 10, 60
"""A server that does not answer, or stops in the middle, counts as failed."""
_FIRST_CONTACT = 5
"""Attempts at `dataset.json`: a wrong address should be told soon."""
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PASSING_STATUS = {408, 425, 429}

_log = logging.getLogger("bigtrain")
_dice = random.Random()  # its own: waits must not disturb who draws from the global one


@dataclass(frozen=True)
class Retry:
    """How often a file is asked for, and the seconds between: doubled each time, less up to a half by chance, so
    that a thousand processes do not come back together."""

    attempts: int = 10
    first_wait: float = 0.5
    longest_wait: float = 60.0

    def wait(self, attempt: int) -> float:
        """Seconds after the failure of attempt number `attempt`, from 1."""
        return min(self.first_wait * 2 ** (attempt - 1), self.longest_wait) * _dice.uniform(0.5, 1)


class Cancelled(Exception):
    """What was being fetched is not wanted any more."""


def storage_options(protocol: str) -> dict[str, Any]:
    """Time limits of the file systems that take them, and no attempts of their own: :class:`Retry` says how many."""
    if protocol in ("s3", "s3a"):
        limits = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _SILENCE_SECONDS}
        return {"config_kwargs": {**limits, "retries": {"max_attempts": 0}}}
    if protocol in ("http", "https", "gs", "gcs"):
        from aiohttp import ClientTimeout

        limit = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
        if protocol in ("gs", "gcs"):
            return {"requests_timeout": limit}
        return {"client_kwargs": {"timeout": limit}, "headers": {"Accept-Encoding": "identity"}}
    return {}


def remote_place(text: str) -> Path:
    """The folder or file that a user named, with time limits where it is a URL.

    Raises:
        DataError: The URL is of a kind that nothing here can open.
    """
    protocol, is_url, _ = text.partition("://")
    try:
        path = place(text, **(storage_options(protocol) if is_url else {}))
    except ConfigError as error:
        raise DataError(str(error)) from None
    except ImportError as error:
        raise DataError(f"{text} needs a package that is missing ({error}): pip install 'bigtrain[remote]'") from None
    if protocol in ("s3", "s3a"):
        path.fs.retries = 1  # type: ignore[attr-defined]
    return path


class RemoteFolder:
    """The files of a folder behind a URL.

    Everything raises DataError, naming the URL, its cause and what to do, when it is refused (not there, no access)
    or when the last attempt failed, and `Cancelled` soon after `stop` is set.
    """

    def __init__(self, path: Path, retry: Retry) -> None:
        self.path = path
        self._fs: Any = path.fs  # type: ignore[attr-defined]
        self._retry = retry
        self._first_contact = replace(retry, attempts=min(retry.attempts, _FIRST_CONTACT))

    def __reduce__(self) -> tuple[Any, ...]:
        """For the other ranks, each with a connection of its own."""
        return _reconnect, (str(self.path), self._retry)

    def read(self, name: str) -> bytes:
        """A small file, whole."""
        return self._insist(name, lambda: self._fs.cat_file(self._at(name)), self._first_contact)

    def has(self, name: str) -> bool:
        """Whether a file is there; a server that forbids to ask says no."""

        def look() -> bool:
            try:
                self._fs.info(self._at(name))
            except (*_NOT_THERE, PermissionError):
                return False
            return True

        return self._insist(name, look, self._first_contact)

    def sizes(self) -> dict[str, int] | None:
        """The files' names and bytes; None where there is no list to be had: over HTTP, or without the right to."""
        if str(self.path).startswith(("http://", "https://")):
            return None

        def look() -> dict[str, int] | None:
            try:
                found = self._fs.ls(self._at(""), detail=True)
            except PermissionError:
                return None
            return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in found}

        return self._insist("", look, self._first_contact)

    def fetch(self, name: str, size: int, file: BinaryIO, stop: threading.Event | None = None) -> str:
        """Write a file of `size` bytes to `file`; gives the checksum of what came.

        Raises:
            OSError: `file` cannot be written.
        """
        digest = hashlib.sha256()
        done = 0
        file.seek(0)
        while done < size:
            piece = self._insist(name, partial(self._piece, name, done, size), self._retry, stop)
            digest.update(piece)
            file.write(piece)
            done += len(piece)
        file.flush()
        return digest.hexdigest()

    def fetch_right(
        self, name: str, size: int, sha256: str, file: BinaryIO, stop: threading.Event | None = None
    ) -> None:
        """The same, and again while the checksum is not `sha256`. Raises as `fetch`."""
        for arrival in range(1, _ARRIVALS + 1):
            if self.fetch(name, size, file, stop) == sha256:
                return
            _log.warning("%s arrived with another checksum, %d of %d times", self.path / name, arrival, _ARRIVALS)
            if arrival < _ARRIVALS:
                _pause(self._retry.wait(arrival), stop)
        raise DataError(
            f"{self.path / name}: came {_ARRIVALS} times with another checksum than dataset.json records; it was "
            f"changed or damaged where it lies: put the right file there (`bigtrain data verify {self.path}` "
            "looks at all of them)"
        )

    def _piece(self, name: str, start: int, size: int) -> bytes:
        end = min(start + _PIECE, size)
        piece: bytes = self._fs.cat_file(self._at(name), start=start, end=end)
        whole = start == 0 and len(piece) == size  # from a server that knows no ranges
        if len(piece) != end - start and not whole:
            raise OSError(f"{len(piece)} bytes came where {end - start} should")
        return piece

    def _at(self, name: str) -> str:
        return (self.path / name).path if name else self.path.path  # type: ignore[attr-defined]

    def _insist(self, name: str, action: Callable[[], T], retry: Retry, stop: threading.Event | None = None) -> T:
        url = self.path / name if name else self.path
        attempt = 1
        while True:
            if stop is not None and stop.is_set():
                raise Cancelled
            try:
                return action()
            except Exception as error:  # each kind of storage has its own, and its own faults on a strange answer
                if refusal := _refusal(error):
                    raise DataError(f"{url} cannot be read: {refusal} ({_reason(error)})") from error
                if attempt >= retry.attempts:
                    raise DataError(
                        f"{url} cannot be read, {attempt} attempts failed, the last by {_reason(error)}; look whether "
                        "the address is right and its server answers, then start again"
                    ) from error
                wait = retry.wait(attempt)
                _log.warning(
                    "%s: attempt %d of %d failed (%s), again in %.1f s",
                    url,
                    attempt,
                    retry.attempts,
                    _reason(error),
                    wait,
                )
            _pause(wait, stop)
            attempt += 1


def _reconnect(url: str, retry: Retry) -> RemoteFolder:
    return RemoteFolder(remote_place(url), retry)


def _pause(seconds: float, stop: threading.Event | None) -> None:
    (stop or threading.Event()).wait(seconds)


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _refusal(error: Exception) -> str | None:
    """What a server that would say the same again has said; None for all that may pass."""
    answer = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(error, "code", None) or getattr(answer, "status_code", None)
    if isinstance(error, _NOT_THERE) or status in (404, 410):
        return "it is not there"
    denied = isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden")  # gcsfs
    if denied or "Credentials" in type(error).__name__:
        return "access is denied, look at the credentials in the environment"
    if isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS:
        return f"the server refuses, status {status}"
    return None
