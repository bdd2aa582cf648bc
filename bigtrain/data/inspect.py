"""What is in a dataset, for a person to look at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtrain.data.manifest import Manifest
from bigtrain.data.shards import open_dataset


@dataclass(frozen=True)
class InspectedDocument:
    source: str
    position: int
    tokens: int
    text: str


@dataclass(frozen=True)
class Inspection:
    """A dataset in short; lengths are in tokens, the end-of-document token included."""

    manifest: Manifest
    shortest: int
    median: float
    longest: int
    bytes_per_token: float
    histogram: list[tuple[int, int]]
    """(documents, 2**n): those of at least so many tokens and below twice as many, from the shortest to the longest."""
    sources: list[tuple[str, int]]
    """Sources with most documents, and how many."""
    first_documents: list[InspectedDocument]
    random_documents: list[InspectedDocument]


_SOURCES = 5


def inspect(path: str | Path, documents: int = 3, seed: int = 0) -> Inspection:
    """Counts, lengths, sources, the first `documents` documents, decoded, and as many drawn with `seed`, of the dataset
    in the folder or behind the URL `path`.

    Raises:
        DataError: no dataset there, or it is damaged.
    """
    dataset = open_dataset(path)
    tokenizer = dataset.load_tokenizer()

    def look(index: int) -> InspectedDocument:
        tokens, source, position = dataset.document(index)
        return InspectedDocument(source, position, len(tokens), tokenizer.decode(tokens[:-1].tolist()))

    count = min(documents, dataset.documents)
    drawn = np.random.default_rng(seed).choice(dataset.documents, count, replace=False) if count else np.empty(0, int)
    lengths = dataset.document_lengths()
    powers = np.bincount(np.log2(np.maximum(lengths, 1)).astype(int)).tolist() if lengths.size else []
    return Inspection(
        manifest=dataset.manifest,
        shortest=int(lengths.min(initial=dataset.tokens)),
        median=float(np.median(lengths)) if lengths.size else 0.0,
        longest=int(lengths.max(initial=0)),
        bytes_per_token=dataset.bytes / max(dataset.tokens, 1),
        histogram=[(count, 2**power) for power, count in enumerate(powers) if any(powers[: power + 1])],
        sources=dataset.count_sources().most_common(_SOURCES),
        first_documents=[look(index) for index in range(count)],
        random_documents=[look(index) for index in sorted(drawn.tolist())],
    )
