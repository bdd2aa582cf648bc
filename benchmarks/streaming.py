"""Tokens per second read from a bucket, against the same dataset on disk.

An S3-API server (moto, a process of its own) holds the dataset. The same samples, shuffled, are read through `Samples`
from the folder on disk (`disk`), from the bucket with an empty cache (`cold`: fetching, checking and reading, nothing
fetched ahead) and from the bucket with all shards in the cache (`warm`).
Disk and warm take turns, each round with a dataset opened anew; `ratio` is the median of warm / disk over the rounds.
Prints one JSON line, and fails where they read other tokens.

    python benchmarks/streaming.py
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from s3fs import S3FileSystem

from bigtrain.data.cache import Cache
from bigtrain.data.samples import Samples
from bigtrain.data.shards import TokenDataset, open_dataset
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.prepare.train_tokenizer import train_sentencepiece

SERVER = Path(__file__).parent.parent / "tests" / "s3_server.py"
URL = "s3://benchmark/train"


def make(scratch: Path, tokens: int, shards: int) -> Path:
    text = "some words to learn from " * 1000
    tokenizer = load_tokenizer(train_sentencepiece([text], scratch / "tokenizer.model", 300))
    stream = np.random.default_rng(0).integers(3, 300, tokens, dtype=np.uint16)
    lengths = np.full(tokens // 1000, 1000)
    stream[999::1000] = tokenizer.eos_id
    documents = Documents(stream, lengths, ["file"] * len(lengths), list(range(len(lengths))), bytes=4 * tokens)
    write_dataset(scratch / "train", [documents], tokenizer, -(-tokens // shards))
    return scratch / "train"


def read(dataset: TokenDataset, length: int, batch: int) -> tuple[float, str]:
    """Tokens per second of a whole epoch, and a checksum of some of them."""
    samples = Samples(dataset, length, seed=1, shuffle=True)
    digest = hashlib.sha256()
    began = time.perf_counter()
    for first in range(0, len(samples) - batch, batch):
        tokens = samples.read(range(first, first + batch)).tokens
        if first % (batch * 64) == 0:
            digest.update(tokens.tobytes())
    return first * length / (time.perf_counter() - began), digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    length, batch = options.sequence_length, options.batch
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        folder, cache = make(Path(scratch), options.tokens, options.shards), Cache(Path(scratch) / "cache")
        client = S3FileSystem()
        client.mkdir("benchmark")
        client.put(str(folder), URL, recursive=True)
        cold, expected = read(open_dataset(URL, cache), length, batch)
        disk: list[float] = []
        warm: list[float] = []
        for _ in range(options.rounds):
            for path, figures in ((folder, disk), (URL, warm)):
                with closing(open_dataset(path, cache)) as dataset:
                    figure, digest = read(dataset, length, batch)
                if digest != expected:
                    sys.exit("void: other tokens were read")
                figures.append(figure)
        server.kill()
    result = {
        "benchmark": "streaming",
        "ratio": statistics.median(w / d for w, d in zip(warm, disk, strict=True)),
        "disk_tokens_per_second": statistics.median(disk),
        "warm_tokens_per_second": statistics.median(warm),
        "cold_tokens_per_second": cold,
        "tokens": options.tokens,
        "shards": options.shards,
        "sequence_length": length,
        "batch": batch,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
