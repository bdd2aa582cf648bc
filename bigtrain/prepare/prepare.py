"""From text to a dataset: documents tokenised on several cores, or several nodes, and written to shards.

The result depends on the inputs and options alone, not on the number of workers or tasks, nor on how often the work
was killed and begun again: it is cut by one plan, and what is finished is kept in `OUTPUT.partial`.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bigtrain import __version__
from bigtrain.data.manifest import Manifest, read_manifest, token_dtype
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.data.writing import TOKENS_PER_SHARD, Documents
from bigtrain.errors import DataError
from bigtrain.prepare.complete import complete, count_reasons
from bigtrain.prepare.encode import Encoded, Encoding, encode, ordered_map
from bigtrain.prepare.inputs import find_files, read_cleaning
from bigtrain.prepare.partial import Partial, open_partial, partial_path, read_plan
from bigtrain.prepare.plan import Plan, make_plan
from bigtrain.prepare.reading import Errand, Files, LineCounter, Range, Reject, errands
from bigtrain.prepare.text import MAX_DOCUMENT_BYTES

OnProgress = Callable[[int, int], None]
"""Told bytes done and bytes in all, about."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote."""

    train: Manifest
    validation: Manifest | None
    rejected: int
    """Records left out; `rejects.jsonl` names each and says why."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """How many of them for which reason."""


@dataclass(frozen=True)
class _Job:
    """An errand, and where in the plan it stands."""

    part: int
    piece: int
    errand: Errand
    last: bool
    """Of its part."""


def prepare(inputs: Sequence[str | Path], output: str | Path, tokenizer: str | Path, **options: Any) -> Prepared:
    """Tokenise the documents of `inputs` into the new folder `output`, in this process and its workers.

    It gets a dataset `train`, another `validation` if `validation_fraction` > 0 (that share of the
    documents, chosen by a hash of their text), and `rejects.jsonl`, and appears only when it is complete.
    Arguments, and what is raised, as in `prepare_task`.
    """
    made = prepare_task(inputs, output, tokenizer, **options)
    assert made is not None  # there is no other task
    return made


def prepare_task(
    inputs: Sequence[str | Path],
    output: str | Path,
    tokenizer: str | Path,
    *,
    pattern: str = "*",
    exclude: Sequence[str] = (),
    text_key: str = "text",
    validation_fraction: float = 0.0,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    workers: int | None = None,
    task: int = 0,
    tasks: int = 1,
    on_progress: OnProgress | None = None,
) -> Prepared | None:
    """One task's share of `prepare`; the one that ends last completes the dataset, the others return None.

    `inputs`, `pattern`, `exclude` as in `find_files`, `text_key` as in `read`; `tokenizer` is a file or folder for
    `load_tokenizer`; documents above `max_document_bytes` of UTF-8 (a line of JSON: of the line) are rejected;
    a shard ends with the piece of about a mebibyte that reaches `tokens_per_shard`; `workers` processes, by default
    one for each usable core. All tasks must have the same arguments but for `workers`, `task` and `on_progress`.

    Raises:
        DataError: `output` exists or cannot be written, or the beginning of another dataset lies in its place; an
            input or the tokenizer is missing or unreadable; nothing is left for `train` or `validation`.
    """
    output = Path(output)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    _check(validation_fraction, workers, task, tasks, max_document_bytes, tokens_per_shard)
    loaded = load_tokenizer(tokenizer)
    provenance = _provenance(
        inputs,
        {
            "tokenizer": loaded.fingerprint,
            "pattern": pattern,
            "exclude": list(exclude),
            "text_key": text_key,
            "validation_fraction": validation_fraction,
            "tokens_per_shard": tokens_per_shard,
            "max_document_bytes": max_document_bytes,
        },
    )
    plan = make_plan(find_files(inputs, pattern, exclude), provenance, text_key, tokens_per_shard)
    if output.exists():
        return _already_there(output, plan, tasks)
    encoding = Encoding(loaded.path, text_key, max_document_bytes, validation_fraction)
    try:
        with open_partial(output, plan) as partial:
            if not output.exists():  # else other tasks have just completed it
                _do_parts(plan, range(task, len(plan.parts), tasks), partial, encoding, loaded, workers, on_progress)
            with partial.completing():
                if output.exists():
                    shutil.rmtree(partial.path, ignore_errors=True)
                elif not complete(partial, output, len(plan.parts), loaded, provenance):
                    return None
            return _made(output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror}); what is finished is kept") from error


def _check(
    fraction: float, workers: int, task: int, tasks: int, max_document_bytes: int, tokens_per_shard: int
) -> None:
    if not 0 <= fraction < 1:
        raise DataError(f"validation_fraction is {fraction}; it must be at least 0 and below 1")
    if workers < 1:
        raise DataError(f"workers is {workers}; it must be at least 1")
    if not 0 <= task < tasks:
        raise DataError(f"task is {task} of {tasks}; it must be at least 0 and below the number of tasks")
    if max_document_bytes < 1:
        raise DataError(f"max_document_bytes is {max_document_bytes}; it must be at least 1")
    if tokens_per_shard < 1:
        raise DataError(f"tokens_per_shard is {tokens_per_shard}; it must be at least 1")


def _provenance(inputs: Sequence[str | Path], options: dict[str, Any]) -> dict[str, Any]:
    """Everything the output follows from, but for the inputs' content; no folder of this machine is named."""
    names = [Path(given).resolve().name.encode(errors="backslashreplace").decode() for given in inputs]
    packages = ("pyarrow", "sentencepiece", "tokenizers")
    return {
        "inputs": names,
        "options": options,
        "versions": {"bigtrain": __version__, **{name: version(name) for name in packages}},
        "cleaning": read_cleaning(inputs),
    }


def _already_there(output: Path, plan: Plan, tasks: int) -> Prepared:
    """`output` exists: an error, unless it is this very dataset, made by a run that was killed as it cleared up, or by
    other tasks before this one had started."""
    begun = read_plan(output)
    if begun is not None and begun["fingerprint"] == plan.fingerprint:
        shutil.rmtree(partial_path(output), ignore_errors=True)
    elif tasks == 1 or not (output / "train").is_dir() or _provenance_of(output) != _as_json(plan.options):
        raise DataError(f"{output}: exists already; remove it or choose another output folder")
    return _made(output)


def _provenance_of(output: Path) -> Any:
    return read_manifest(output / "train").provenance


def _as_json(options: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(options))


def _made(output: Path) -> Prepared:
    validation = output / "validation"
    reasons = count_reasons(output / "rejects.jsonl")
    return Prepared(
        read_manifest(output / "train"),
        read_manifest(validation) if validation.is_dir() else None,
        reasons.total(),
        dict(reasons.most_common()),
    )


def _do_parts(
    plan: Plan,
    parts: Sequence[int],
    partial: Partial,
    encoding: Encoding,
    tokenizer: Tokenizer,
    workers: int,
    on_progress: OnProgress | None,
) -> None:
    """Make the shards of `parts` that are not there yet."""
    total = sum(unit.size for part in parts for unit in plan.parts[part])
    done = 0
    writer = _PartWriter(partial, tokenizer, plan.options["options"]["tokens_per_shard"])
    jobs = _jobs(plan, parts, partial, encoding)
    lines = LineCounter()
    function = functools.partial(_encode_job, encoding)
    for job, encoded in ordered_map(function, jobs, workers):
        writer.add(job, _in_file(job.errand, encoded, lines))
        done += job.errand.size
        if on_progress:
            on_progress(min(done, total), total)


def _encode_job(encoding: Encoding, job: _Job) -> Encoded:
    return encode(encoding, job.errand)


def _jobs(plan: Plan, parts: Iterable[int], partial: Partial, encoding: Encoding) -> Iterator[_Job]:
    """The errands that remain."""
    for number in parts:
        partial.claim(number)
        closed = partial.closed(number)
        if closed and closed[-1].last:
            continue
        done = closed[-1].pieces if closed else 0
        waiting: _Job | None = None  # whether it is the part's last, the next will tell
        for piece, errand in enumerate(errands(plan.parts[number], encoding.text_key, encoding.limit)):
            if waiting:
                yield waiting
            waiting = _Job(number, piece, errand, last=False) if piece >= done else None
        yield replace(waiting, last=True) if waiting else _Job(number, 0, Files((), 0), last=True)


def _in_file(errand: Errand, encoded: Encoded, lines: LineCounter) -> Encoded:
    """The same with positions counted from the file's beginning."""
    if not isinstance(errand, Range):
        return encoded
    before = lines.before(errand.file, errand.start)
    lines.learn(errand.file, errand.end, before + encoded.records)
    train, validation = (
        replace(side, positions=[position + before for position in side.positions])
        for side in (encoded.train, encoded.validation)
    )
    rejects = [replace(reject, position=reject.position + before) for reject in encoded.rejects]
    return Encoded(train, validation, rejects)


class _PartWriter:
    """Collects the results of a part, and writes a shard when enough are there."""

    def __init__(self, partial: Partial, tokenizer: Tokenizer, tokens_per_shard: int) -> None:
        self._partial = partial
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokens_per_shard = tokens_per_shard
        self._part = -1
        self._number = 0
        self._clear()

    def add(self, job: _Job, encoded: Encoded) -> None:
        """The next piece's result."""
        if job.part != self._part:
            self._part, self._number = job.part, len(self._partial.closed(job.part))
        for side, documents in zip(self._sides, (encoded.train, encoded.validation), strict=True):
            side.append(documents)
        self._rejects += encoded.rejects
        self._tokens += len(encoded.train.tokens) + len(encoded.validation.tokens)
        if job.last or self._tokens >= self._tokens_per_shard:
            self._partial.close_shard(
                self._part, self._number, job.piece + 1, job.last, self._sides, self._rejects, self._dtype
            )
            self._number += 1
            self._clear()

    def _clear(self) -> None:
        self._sides: tuple[list[Documents], list[Documents]] = ([], [])
        self._rejects: list[Reject] = []
        self._tokens = 0
