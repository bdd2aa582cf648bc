"""Reads a dataset behind a URL, all of it, and prints the sum of its tokens: `read_all.py URL CACHE`."""

import sys
from pathlib import Path

from bigtrain.data.cache import Cache
from bigtrain.data.shards import open_dataset

dataset = open_dataset(sys.argv[1], Cache(Path(sys.argv[2])))
print("open", flush=True)
sys.stdin.readline()
print(int(dataset.read(0, dataset.tokens).sum(dtype="int64")), flush=True)
