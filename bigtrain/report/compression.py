"""What general compressors make of the same text: the yardstick for a model's bits per byte."""

import lzma
from pathlib import Path

import pyarrow as pa

from bigtrain.data.shards import open_dataset


def held_out_text(dataset: Path) -> bytes:
    """The text of a dataset, all documents one after the other, in UTF-8.

    Raises:
        DataError: The dataset cannot be read.
    """
    opened = open_dataset(dataset)
    tokenizer = opened.load_tokenizer()
    documents = (opened.document(index).tokens[:-1].tolist() for index in range(opened.documents))
    return b"".join(tokenizer.decode(tokens).encode("utf-8", errors="replace") for tokens in documents)


def compression(dataset: Path) -> dict[str, float]:
    """Bits that `xz -9` and `zstd -19` need for a byte of a dataset's text, compressed as one file.

    They start from nothing, where a model has read its training text; but they see the whole held-out text.

    Raises:
        DataError: The dataset cannot be read, or has no text.
    """
    text = held_out_text(dataset)
    sizes = {
        "xz -9": len(lzma.compress(text, preset=9)),
        "zstd -19": len(pa.Codec("zstd", compression_level=19).compress(text, asbytes=True)),
    }
    return {name: 8 * size / len(text) for name, size in sizes.items()}
