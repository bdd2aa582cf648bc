"""From text to a dataset: documents tokenised on several cores and written to shards.

The result depends on the inputs alone, not on the number of workers: the work is cut and the results are
taken in one order, that of the inputs.
"""

import functools
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bigtrain.data.manifest import Manifest, token_dtype
from bigtrain.data.shards import TOKENS_PER_SHARD, Documents, ShardWriter, new_folder
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.errors import DataError
from bigtrain.prepare.text import PIECE_BYTES, Piece, Reject, Text, find_pieces, is_held_out, read_piece

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote."""

    train: Manifest
    validation: Manifest | None
    rejected: int
    """Records left out; `rejects.jsonl` names each and says why."""


@dataclass(frozen=True)
class _Encoded:
    """A worker's result for one group of pieces."""

    train: Documents
    validation: Documents
    rejects: list[Reject]


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    tokenizer: str | Path,
    *,
    pattern: str = "*",
    exclude: Sequence[str] = (),
    text_key: str = "text",
    validation_fraction: float = 0.0,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    workers: int | None = None,
) -> Prepared:
    """Tokenise the documents of `inputs` into the new folder `output`.

    It gets a dataset `train`, another `validation` if `validation_fraction` > 0 (that share of the
    documents, chosen by a hash of their text), and `rejects.jsonl`, and appears only when it is complete.
    `inputs`, `pattern`, `exclude` as in `find_pieces`, `text_key` as in `read_piece`; `tokenizer` is a file
    or folder for `load_tokenizer`; `workers` processes, by default one for each usable core.

    Raises:
        DataError: `output` exists or cannot be written; an input or the tokenizer is missing or unreadable;
            nothing is left for `train` or `validation`.
    """
    if not 0 <= validation_fraction < 1:
        raise DataError(f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1")
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise DataError(f"workers is {workers}; it must be at least 1")
    loaded = load_tokenizer(tokenizer)
    encode = functools.partial(_encode_group, loaded.path, text_key, validation_fraction)
    groups = _group(find_pieces(inputs, pattern, exclude))
    with new_folder(output) as folder, (folder / "rejects.jsonl").open("w") as rejects_file:
        train = _new_writer(folder / "train", loaded, tokens_per_shard)
        validation = _new_writer(folder / "validation", loaded, tokens_per_shard) if validation_fraction else None
        rejected = 0
        for encoded in _ordered_map(encode, groups, workers):
            train.add(encoded.train)
            if validation:
                validation.add(encoded.validation)
            rejects_file.writelines(json.dumps(asdict(reject)) + "\n" for reject in encoded.rejects)
            rejected += len(encoded.rejects)
        rejects_file.flush()
        if not train.documents:
            raise DataError(f"no document is left for training; {_first_reject(folder, rejected)}")
        if validation and not validation.documents:
            raise DataError(f"validation_fraction {validation_fraction} holds out none of {train.documents} documents")
        return Prepared(train.close(), validation.close() if validation else None, rejected)


def _new_writer(folder: Path, tokenizer: Tokenizer, tokens_per_shard: int) -> ShardWriter:
    folder.mkdir()
    return ShardWriter(folder, tokenizer, tokens_per_shard)


def _first_reject(folder: Path, rejected: int) -> str:
    if not rejected:
        return "the inputs hold none"
    with (folder / "rejects.jsonl").open() as file:
        first = Reject(**json.loads(file.readline()))
    return f"{rejected} were rejected, the first {first.source} record {first.position}: {first.reason}"


def _group(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Small files together, so that a worker's errand is worth its way."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += piece.end - piece.start
        if size >= PIECE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


_load_tokenizer_once = functools.cache(load_tokenizer)


def _encode_group(tokenizer_path: Path, text_key: str, validation_fraction: float, pieces: list[Piece]) -> _Encoded:
    """What a worker does: read, tokenise, and decide the side of every document of `pieces`."""
    tokenizer = _load_tokenizer_once(tokenizer_path)
    sides: tuple[list[Text], list[Text]] = ([], [])
    rejects = []
    for piece in pieces:
        for document in read_piece(piece, text_key):
            if isinstance(document, Reject):
                rejects.append(document)
            else:
                sides[is_held_out(document.text, validation_fraction)].append(document)
    train, validation = (encode_documents(tokenizer, side) for side in sides)
    return _Encoded(train, validation, rejects)


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Text]) -> Documents:
    """Tokenise documents and end each with the end-of-document token."""
    ids = tokenizer.encode_batch([document.text for document in documents])
    dtype = token_dtype(tokenizer.vocab_size)
    arrays = [np.array([*document, tokenizer.eos_id], dtype=dtype) for document in ids]
    return Documents(
        tokens=np.concatenate([np.empty(0, dtype), *arrays]),
        lengths=np.array([len(array) for array in arrays], dtype=np.int64),
        sources=[document.source for document in documents],
        positions=[document.position for document in documents],
        bytes=sum(len(document.text.encode()) for document in documents),
    )


def _ordered_map(function: Callable[[Work], Result], work: Iterable[Work], workers: int) -> Iterator[Result]:
    """`map` over several processes: results in the order of `work`, of which only a few ahead are taken."""
    if workers == 1:
        yield from map(function, work)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        pending: deque[Future[Result]] = deque()
        for item in work:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
