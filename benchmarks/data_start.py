"""How long until the first batch of a dataset of 10^12 tokens in 10^5 shards, and in how much memory.

The shards are there: each is a name of one of a few real files, of 10^7 tokens, so that they take 40 MB of disk and
can all be opened. A fresh process opens the dataset, orders it and reads one batch, shuffled; once through `Samples`
alone, which needs no torch, and once as tensors through `micro_batches`. Seconds are from the call of `open_dataset`
to the batch; the imports before it are told apart. Memory is the peak of the resident set, above that of a bare
interpreter, and for tensors above that of one with torch and numpy imported too. The best of `--starts` processes.
Prints one JSON line.

    python benchmarks/data_start.py
"""

import argparse
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.prepare.train_tokenizer import train_sentencepiece

SEQUENCE_LENGTH, BATCH = 2048, 8

MEASURE = """
import json, sys, time
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
bare, began = peak(), time.perf_counter()
if {tensors}:
    import torch
    with_torch = peak()
    from bigtrain.data.batch import micro_batches
    from bigtrain.data.loader import CausalText
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
imported, cpu_imported = time.perf_counter(), time.process_time()
samples = Samples(open_dataset({folder!r}), {length}, seed=1, shuffle=True)
if {tensors}:
    (batch,) = micro_batches(CausalText(samples), 0, global_batch_size={batch}, micro_batch_size={batch})
    tokens = batch.input_ids
else:
    tokens = samples.read(range({batch})).tokens[:, :-1]
seconds, cpu_seconds, most = time.perf_counter() - imported, time.process_time() - cpu_imported, peak()
assert tokens.shape == ({batch}, {length})
assert ("torch" in sys.modules) == {tensors}
result = dict(seconds=seconds, cpu_seconds=cpu_seconds, import_seconds=imported - began)
result["peak_bytes_above_interpreter"] = most - bare
if {tensors}:
    result["peak_bytes_above_torch"] = most - with_torch
print(json.dumps(result))
"""


def make(folder: Path, shards: int, tokens_per_shard: int) -> int:
    """A dataset in the new folder of many names for a few files; gives its tokens."""
    (folder.parent / "text").write_text("some words to learn from " * 1000)
    text = (folder.parent / "text").read_text()
    tokenizer = load_tokenizer(train_sentencepiece([text], folder.parent / "tokenizer.model", 300))
    tokens = np.arange(tokens_per_shard) % 200 + 3
    lengths = np.full(tokens_per_shard // 1000, 1000)
    tokens[999::1000] = tokenizer.eos_id
    positions = list(range(len(lengths)))
    documents = Documents(tokens, lengths, ["file"] * len(lengths), positions, bytes=4 * tokens_per_shard)
    write_dataset(folder, [documents], tokenizer, tokens_per_shard)
    manifest = json.loads((folder / "dataset.json").read_text())
    (record,) = manifest["shards"]
    source = folder / record["file"]
    manifest["shards"] = [record | {"file": f"shard-{number:06d}.arrow"} for number in range(shards)]
    for entry in manifest["shards"]:
        try:
            os.link(source, folder / entry["file"])
        except OSError as error:
            if error.errno != errno.EMLINK:  # as many names as a file may have
                raise
            (folder / entry["file"]).write_bytes(source.read_bytes())
            source = folder / entry["file"]
    (folder / record["file"]).unlink()
    for total in ("tokens", "documents", "bytes"):
        manifest[total] *= shards
    (folder / "dataset.json").write_text(json.dumps(manifest, indent=1))
    return manifest["tokens"]


def measure(folder: Path, tensors: bool, starts: int) -> dict[str, float]:
    """The quickest of several fresh processes."""
    program = MEASURE.format(folder=str(folder), tensors=tensors, length=SEQUENCE_LENGTH, batch=BATCH)
    runs: list[dict[str, float]] = []
    for _ in range(starts):
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        runs.append(json.loads(told.stdout))
    return min(runs, key=lambda run: run["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=10**5)
    parser.add_argument("--tokens-per-shard", type=int, default=10**7)
    parser.add_argument("--starts", type=int, default=3, help="processes for each figure")
    parser.add_argument("--without-torch", action="store_true", help="leave the tensors out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dataset"
        began = time.perf_counter()
        tokens = make(folder, options.shards, options.tokens_per_shard)
        result: dict[str, Any] = {
            "benchmark": "data_start",
            "tokens": tokens,
            "shards": options.shards,
            "manifest_bytes": (folder / "dataset.json").stat().st_size,
            "samples": measure(folder, False, options.starts),
            **({} if options.without_torch else {"tensors": measure(folder, True, options.starts)}),
            "sequence_length": SEQUENCE_LENGTH,
            "batch": BATCH,
            "starts": options.starts,
            "seconds_to_make": time.perf_counter() - began,
            "cores": os.cpu_count(),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
