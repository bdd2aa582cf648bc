"""Batches a second of one process: bigtrain's loader beside litdata's `TokensLoader` and Megatron-core's `GPTDataset`.

All read the same tokens, shuffled, in turn in one run: a stream of uint16 in documents of a geometric length. Ours
gives inputs, labels, loss mask and positions; so does Megatron's; litdata gives the bare windows. `copy` is the least
that anyone must do: the windows copied, at random places, from one mapped array into int64. The figures are
medians of the rounds; ratios are of ours to a peer's. Prints one JSON line.

    pip install -r benchmarks/requirements.txt
    python benchmarks/loader.py
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigtrain.data.batch import micro_batches
from bigtrain.data.loader import CausalText
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.prepare.train_tokenizer import train_sentencepiece

MEAN_DOCUMENT = 800
EOS = 2


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens, lengths = make_tokens(options.tokens)
        makers: dict[str, Callable[[], Iterator[Any]]] = {
            **ours(folder, tokens, lengths, options),
            "litdata": litdata_loader(folder / "litdata", tokens, options),
            "megatron": megatron_loader(folder / "megatron", tokens, lengths, options),
            "copy": copier(folder / "copy", tokens, options),
        }
        iterators = {name: make() for name, make in makers.items()}
        rates: dict[str, list[float]] = {name: [] for name in iterators}
        for round_number in range(options.rounds + 1):
            for name, batches in iterators.items():
                rate = batches_per_second(batches, options.batches)
                if round_number:  # the first warms up
                    rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "benchmark": "loader",
        "tokens": options.tokens,
        "sequence_length": options.sequence_length,
        "batch_size": options.batch_size,
        "batches_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "over_litdata": round(medians["bigtrain"] / medians["litdata"], 2),
        "over_megatron": round(medians["bigtrain"] / medians["megatron"], 2),
        "documents_over_litdata": round(medians["documents"] / medians["litdata"], 2),
        "of_copy": round(medians["bigtrain"] / medians["copy"], 2),
        "copy_over_litdata": round(medians["copy"] / medians["litdata"], 2),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("torch", "litdata", "megatron-core", "pyarrow")},
    }
    print(json.dumps(result))


def make_tokens(size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint16 [size], and the documents' lengths."""
    generator = np.random.default_rng(0)
    lengths = generator.geometric(1 / MEAN_DOCUMENT, 2 * size // MEAN_DOCUMENT) + 1
    ends = np.cumsum(lengths)
    last = int(np.searchsorted(ends, size))
    lengths = lengths[: last + 1].copy()
    lengths[-1] -= ends[last] - size
    tokens = generator.integers(3, 32_000, size, dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = EOS
    return tokens, lengths


def batches_per_second(batches: Iterator[Any], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count / (time.perf_counter() - began)


def ours(folder: Path, tokens: np.ndarray, lengths: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """The plain loader, the one that keeps documents apart, and best-fit packing."""
    text = [Path(os.__file__).read_text()]
    tokenizer = load_tokenizer(train_sentencepiece(text, folder / "tokenizer.model", 400))
    documents = Documents(tokens, lengths, ["made"] * len(lengths), list(range(len(lengths))), bytes=1)
    write_dataset(folder / "bigtrain", [documents], tokenizer)

    def batches(packing: str) -> Iterator[Any]:
        samples = Samples(open_dataset(folder / "bigtrain"), options.sequence_length, seed=1, packing=packing)
        text, size = CausalText(samples, packing), options.batch_size
        for step in count():
            yield micro_batches(text, step * size, global_batch_size=size, micro_batch_size=size)

    return {
        name: lambda packing=packing: batches(packing)
        for name, packing in (("bigtrain", "contiguous"), ("documents", "documents"), ("best_fit", "best_fit"))
    }


def copier(path: Path, tokens: np.ndarray, options: argparse.Namespace) -> Callable[[], Iterator[torch.Tensor]]:
    tokens.tofile(path)
    length = options.sequence_length + 1

    def batches() -> Iterator[torch.Tensor]:
        mapped = np.memmap(path, dtype=np.uint16, mode="r")
        places = np.random.default_rng(1).integers(0, len(mapped) - length, 1 << 16).tolist()
        for step in count():
            rows = np.empty((options.batch_size, length), dtype=np.int64)
            for number in range(options.batch_size):
                place = places[(step * options.batch_size + number) % len(places)]
                rows[number] = mapped[place : place + length]
            yield torch.from_numpy(rows)

    return batches


_PART = 1 << 20


def _read_part(part: tuple[str, int]) -> Iterator[torch.Tensor]:
    """In litdata's worker."""
    path, begin = part
    yield torch.from_numpy(np.fromfile(path, dtype=np.uint16, count=_PART, offset=2 * begin))


def litdata_loader(folder: Path, tokens: np.ndarray, options: argparse.Namespace) -> Callable[[], Iterator[Any]]:
    """As its documentation has it: chunks of blocks, read by `StreamingDataset` and `StreamingDataLoader`."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

    length = options.sequence_length + 1
    tokens.tofile(folder.with_suffix(".bin"))
    parts = [(str(folder.with_suffix(".bin")), begin) for begin in range(0, len(tokens), _PART)]
    options_of_chunks = {"chunk_size": length * 8192, "item_loader": TokensLoader(), "num_workers": 1}
    optimize(_read_part, parts, str(folder), **options_of_chunks)

    def batches() -> Iterator[Any]:
        dataset = StreamingDataset(
            str(folder), item_loader=TokensLoader(block_size=length), shuffle=True, drop_last=True
        )
        while True:
            yield from StreamingDataLoader(dataset, batch_size=options.batch_size, num_workers=0)

    return batches


class _Tokenizer:
    """What `GPTDatasetConfig` asks of a tokenizer."""

    vocab_size = 32_000
    eod = EOS
    pad = EOS
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012 (Megatron writes it into its cache's name)


def megatron_loader(
    prefix: Path, tokens: np.ndarray, lengths: np.ndarray, options: argparse.Namespace
) -> Callable[[], Iterator[Any]]:
    """`GPTDataset` over its own indexed files, in a torch loader as Megatron's training script has it."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    begin = 0
    for length in lengths.tolist():
        builder.add_document(torch.from_numpy(tokens[begin : begin + length]), [length])
        begin += length
    builder.finalize(f"{prefix}.idx")

    def batches() -> Iterator[Any]:
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=options.sequence_length,
            split="1,0,0",
            path_to_cache=str(prefix.with_name("cache")),
            tokenizer=_Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        indexed = IndexedDataset(str(prefix), mmap=True)
        dataset = GPTDataset(
            indexed,
            str(prefix),
            np.arange(len(lengths), dtype=np.int32),
            4 * options.tokens // options.sequence_length,
            Split.train,
            config,
        )
        while True:
            yield from torch.utils.data.DataLoader(dataset, batch_size=options.batch_size, shuffle=False)

    return batches


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=400, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
