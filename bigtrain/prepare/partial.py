"""`OUTPUT.partial`: what is finished of a dataset that is being made, by one process or by many.

    plan.json                        what it will be: options, and a fingerprint of the inputs and them
    lock                             a byte for each part, locked by the process that works on it
    parts/00003-001.arrow            part 3's second shard
    parts/00003-001.held-out.arrow   the documents that were held out of it
    parts/00003-001.jsonl            written last: what those are, how many pieces of the part are done; then rejects
    output/                          what becomes OUTPUT

A file is written under another name and renamed, so that it is whole or not there.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.data.manifest import ShardRecord
from bigtrain.data.writing import Documents, write_shard
from bigtrain.errors import DataError
from bigtrain.prepare.plan import Plan
from bigtrain.prepare.reading import Reject


@dataclass(frozen=True)
class Closed:
    """The record of a shard that is finished."""

    part: int
    number: int
    """Of the shard in its part, from 0."""
    pieces: int
    """Of the part that are done with this shard."""
    last: bool
    """The part is finished."""
    train: ShardRecord | None
    train_bytes: int
    validation: ShardRecord | None
    validation_bytes: int
    rejected: int


class Partial:
    """The folder `OUTPUT.partial`. Made by :func:`open_partial`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.parts = path / "parts"
        self.output = path / "output"
        self._lock = lock

    def claim(self, part: int) -> None:
        """Keep part number `part` for this process, as long as it lives. Raises DataError if another has it."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, part + 1)
        except OSError as error:
            raise DataError(
                f"{self.path}: another process is at work on part {part} of it ({error.strerror})"
            ) from error

    @contextmanager
    def completing(self) -> Iterator[None]:
        """One process at a time."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, 0)

    def close(self) -> None:
        os.close(self._lock)

    def closed(self, part: int) -> list[Closed]:
        """The finished shards of a part, in order."""
        found: list[Closed] = []
        while (path := self._record(part, len(found))).is_file():
            with path.open() as file:
                found.append(_closed(json.loads(file.readline())))
        return found

    def all_closed(self, parts: int) -> list[Closed] | None:
        """The finished shards of all parts, in order, or None if one part is not finished."""
        found: list[Closed] = []
        for part in range(parts):
            of_part = self.closed(part)
            if not of_part or not of_part[-1].last:
                return None
            found += of_part
        return found

    def rejects(self, closed: Closed) -> Iterator[str]:
        """The lines about rejects."""
        with self._record(closed.part, closed.number).open() as file:
            next(file)
            yield from file

    def shard(self, closed: Closed, held_out: bool = False) -> Path:
        return self._shard(closed.part, closed.number, held_out)

    def close_shard(
        self,
        part: int,
        number: int,
        pieces: int,
        last: bool,
        sides: tuple[Sequence[Documents], Sequence[Documents]],
        rejects: Sequence[Reject],
        dtype: str,
    ) -> None:
        """Write a shard: the documents of its two sides, training's and those held out, and its record."""
        train, validation = (
            self._write_side(self._shard(part, number, held_out), documents, dtype)
            for held_out, documents in enumerate(sides)
        )
        sizes = [sum(documents.bytes for documents in side) for side in sides]
        closed = Closed(part, number, pieces, last, train, sizes[0], validation, sizes[1], len(rejects))
        lines = [asdict(closed), *map(asdict, rejects)]
        write_whole(self._record(part, number), "".join(json.dumps(line) + "\n" for line in lines))

    def _write_side(self, path: Path, documents: Sequence[Documents], dtype: str) -> ShardRecord | None:
        documents = [some for some in documents if len(some.lengths)]
        if not documents:
            return None
        temporary = path.with_name(path.name + ".tmp")
        record = write_shard(temporary, documents, dtype)
        _rename_synced(temporary, path)
        return ShardRecord(path.name, record.tokens, record.documents, record.size_bytes, record.sha256)

    def _record(self, part: int, number: int) -> Path:
        return self.parts / f"{part:05d}-{number:03d}.jsonl"

    def _shard(self, part: int, number: int, held_out: bool | int) -> Path:
        return self.parts / f"{part:05d}-{number:03d}{'.held-out' if held_out else ''}.arrow"


@contextmanager
def open_partial(output: Path, plan: Plan) -> Iterator[Partial]:
    """The folder `OUTPUT.partial` of this plan, made if it is not there.

    Raises:
        DataError: it holds the beginning of another dataset, or cannot be written.
    """
    path = partial_path(output)
    try:
        (path / "parts").mkdir(parents=True, exist_ok=True)
        (path / "output").mkdir(exist_ok=True)
        begun = read_plan(output)
        if begun is None:
            content = {"fingerprint": plan.fingerprint, "options": plan.options}
            write_whole(path / "plan.json", json.dumps(content, indent=1))
        elif begun["fingerprint"] != plan.fingerprint:
            raise DataError(
                f"{path}: holds the beginning of another dataset ({_difference(begun['options'], plan.options)}); "
                f"run the command that began it, or remove that folder"
            )
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror})") from error
    partial = Partial(path, lock)
    try:
        yield partial
    finally:
        partial.close()


def partial_path(output: Path) -> Path:
    """Where a dataset lies until it is complete."""
    return output.with_name(output.name + ".partial")


def read_plan(output: Path) -> dict[str, Any] | None:
    """What the plan in `OUTPUT.partial` says, or None if there is none. Raises DataError if it is damaged."""
    path = partial_path(output) / "plan.json"
    try:
        content = json.loads(path.read_bytes())
        return {"fingerprint": content["fingerprint"], "options": content["options"]}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged; remove that folder to begin anew") from error


def write_whole(path: Path, content: str) -> None:
    """Write a file that is whole or not there, whenever the process or the machine ends."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    _rename_synced(temporary, path)


def _rename_synced(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(path)


def _closed(content: dict[str, Any]) -> Closed:
    sides = {side: content[side] and ShardRecord(**content[side]) for side in ("train", "validation")}
    return Closed(**(content | sides))


def _difference(begun: Any, asked: Any) -> str:
    """What is other than it was, for a message."""
    asked = json.loads(json.dumps(asked))
    other = [
        f"{section}.{key} was {begun[section].get(key)!r}"
        for section in ("options", "versions")
        for key in asked[section]
        if begun.get(section, {}).get(key) != asked[section][key]
    ]
    return ", ".join(other) if other else "an input is another, or has changed"
