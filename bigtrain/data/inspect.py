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
    first_documents: list[InspectedDocument]


def inspect(path: str | Path, documents: int = 3) -> Inspection:
    """Counts, document lengths and the first `documents` documents, decoded, of the dataset in the folder `path`.

    Raises:
        DataError: no dataset there, or it is damaged.
    """
    dataset = open_dataset(path)
    tokenizer = dataset.load_tokenizer()
    first = []
    for index in range(min(documents, dataset.documents)):
        tokens, source, position = dataset.document(index)
        first.append(InspectedDocument(source, position, len(tokens), tokenizer.decode(tokens[:-1].tolist())))
    lengths = dataset.document_lengths()
    return Inspection(
        manifest=dataset.manifest,
        shortest=int(lengths.min(initial=dataset.tokens)),
        median=float(np.median(lengths)) if lengths.size else 0.0,
        longest=int(lengths.max(initial=0)),
        bytes_per_token=dataset.bytes / max(dataset.tokens, 1),
        first_documents=first,
    )
