"""Documents tokenised on several cores, taken in the order they were given."""

import functools
import multiprocessing
import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

import numpy as np

from bigtrain.data.held_out import is_held_out
from bigtrain.data.manifest import token_dtype
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.data.writing import Documents
from bigtrain.errors import BigTrainError
from bigtrain.prepare.reading import Errand, Reject, Text, read

Work = TypeVar("Work")
Result = TypeVar("Result")

_AHEAD = 3
"""Errands under way for each worker: one that takes long must not make the others wait."""


@dataclass(frozen=True)
class Encoding:
    """How a worker makes tokens of an errand."""

    tokenizer: Path
    text_key: str
    limit: int
    """Bytes of the largest document."""
    validation_fraction: float


@dataclass(frozen=True)
class Encoded:
    """A worker's result for one errand."""

    train: Documents
    validation: Documents
    rejects: list[Reject]

    @property
    def records(self) -> int:
        return len(self.train.lengths) + len(self.validation.lengths) + len(self.rejects)


_load_tokenizer_once = functools.cache(load_tokenizer)


def encode(encoding: Encoding, errand: Errand) -> Encoded:
    """What a worker does: read, tokenise, and decide the side of every document of `errand`."""
    tokenizer = _load_tokenizer_once(encoding.tokenizer)
    sides: tuple[list[Text], list[Text]] = ([], [])
    rejects = []
    for document in read(errand, encoding.text_key, encoding.limit):
        if isinstance(document, Reject):
            rejects.append(document)
        else:
            sides[is_held_out(document.text, encoding.validation_fraction)].append(document)
    train, validation = (encode_documents(tokenizer, side) for side in sides)
    return Encoded(train, validation, rejects)


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Text]) -> Documents:
    """Tokenise documents and end each with the end-of-document token."""
    dtype = token_dtype(tokenizer.vocab_size)
    tokens = array("H" if dtype == "uint16" else "I")
    lengths = []
    for ids in tokenizer.encode_batch([document.text for document in documents]):
        tokens.extend(ids)
        tokens.append(tokenizer.eos_id)
        lengths.append(len(ids) + 1)
    return Documents(
        tokens=np.frombuffer(tokens, dtype=dtype) if tokens else np.empty(0, dtype),
        lengths=np.array(lengths, dtype=np.int64),
        sources=[document.source for document in documents],
        positions=[document.position for document in documents],
        bytes=sum(len(document.text.encode()) for document in documents),
    )


def ordered_map(
    function: Callable[[Work], Result], work: Iterable[Work], workers: int
) -> Iterator[tuple[Work, Result]]:
    """`map` over several processes: items and results in the order of `work`, of which only a few ahead are taken.

    Raises:
        BigTrainError: a worker was killed; whatever `function` raises.
    """
    if workers == 1:
        yield from ((item, function(item)) for item in work)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        pending: deque[tuple[Work, Future[Result]]] = deque()
        try:
            for item in work:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > _AHEAD * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise BigTrainError(
                "a worker process was killed, perhaps for want of memory; the same command goes on from here, "
                "with fewer --workers or smaller --max-document-megabytes if need be"
            ) from error
        finally:
            for _, future in pending:
                future.cancel()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for errands for ever: it holds both ends of their queue."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
