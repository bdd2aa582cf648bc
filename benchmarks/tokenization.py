"""Megabytes of text a second: `bigtrain data prepare` beside datatrove's tokenizer pipeline and Megatron's procedure.

The same JSON lines, the same `tokenizer.json` and as many processes for each, in turn in one run; each writes what its
own trainer reads. datatrove: `JsonlReader` and `DocumentTokenizer` under its local executor, unshuffled, a file a task.
Megatron: what its `preprocess_data.py` does, a pool that encodes line by line (`imap`, 32 a chunk) with the tokenizer's
`encode`, and the parent that writes with megatron-core's `IndexedDatasetBuilder`. Prints one JSON line; memory is the
most that a process of ours held, for the text once and four times over.

    pip install -r benchmarks/requirements.txt
    python benchmarks/tokenization.py
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from bigtrain.prepare.text import read_documents
from bigtrain.prepare.train_tokenizer import train_tokenizer

EOS = "<|endoftext|>"


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        library = sysconfig.get_paths()["stdlib"]
        texts = list(read_documents([library], pattern="*.py", max_bytes=int(options.megabytes * 1e6)))
        tokenizer = folder / "tokenizer"
        train_tokenizer(iter(texts), tokenizer, 16_384, "byte-bpe")
        inputs = folder / "inputs"
        size = write_lines(inputs, texts, options.workers)
        runs: dict[str, Callable[[Path], None]] = {
            "bigtrain": lambda out: ours(inputs, out, tokenizer, options.workers),
            "datatrove": lambda out: datatrove(inputs, out, tokenizer / "tokenizer.json", options.workers),
            "megatron": lambda out: megatron(inputs, out, tokenizer / "tokenizer.json", options.workers),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                seconds[name].append(timed(run, folder / "out"))
        big = folder / "big"
        write_lines(big, texts * 4, options.workers)
        memory = [peaks_of_ours(path, folder / "out", tokenizer, options.workers) for path in (inputs, big)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "benchmark": "tokenize",
        "megabytes": round(size / 1e6, 1),
        "workers": options.workers,
        "megabytes_per_second": {name: round(size / 1e6 / value, 2) for name, value in medians.items()},
        "over_datatrove": round(medians["datatrove"] / medians["bigtrain"], 2),
        "over_megatron": round(medians["megatron"] / medians["bigtrain"], 2),
        "all_seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "peak_megabytes": {"once": memory[0], "four_times": memory[1]},
        "load_average": os.getloadavg()[0],
        "versions": {package: version(package) for package in ("tokenizers", "datatrove", "megatron-core", "pyarrow")},
    }
    print(json.dumps(result))


def write_lines(folder: Path, texts: list[str], files: int) -> int:
    """The texts as JSON lines, dealt out to files; gives the bytes of text."""
    folder.mkdir()
    for number in range(files):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
            for i, text in enumerate(texts[number::files]):
                file.write(json.dumps({"id": f"{number}-{i}", "text": text}) + "\n")
    return sum(len(text.encode()) for text in texts)


def timed(run: Callable[[Path], None], out: Path) -> float:
    began = time.perf_counter()
    run(out)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def command_of_ours(inputs: Path, out: Path, tokenizer: Path, workers: int) -> list[str]:
    """What a user types."""
    command = [sys.executable, "-m", "bigtrain", "data", "prepare", str(inputs), "--output", str(out)]
    return [*command, "--tokenizer", str(tokenizer), "--workers", str(workers)]


def ours(inputs: Path, out: Path, tokenizer: Path, workers: int) -> None:
    subprocess.run(command_of_ours(inputs, out, tokenizer, workers), check=True, stdout=subprocess.DEVNULL)


def peaks_of_ours(inputs: Path, out: Path, tokenizer: Path, workers: int) -> dict[str, int]:
    """The most megabytes that the command's process and the largest of its workers held, as Linux counts them."""
    process = subprocess.Popen(command_of_ours(inputs, out, tokenizer, workers), stdout=subprocess.DEVNULL)
    peaks = {"parent": 0, "worker": 0}
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for name, pid in (("parent", str(process.pid)), *(("worker", child) for child in children)):
            with suppress(OSError):  # it has ended meanwhile
                held = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
                peaks[name] = max(peaks[name], int(held[1]) // 1000 if held else 0)
        time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    shutil.rmtree(out)
    return peaks


def datatrove(inputs: Path, out: Path, tokenizer: Path, workers: int) -> None:
    program = Path(__file__).with_name("tokenization_datatrove.py")
    command = [sys.executable, str(program), str(inputs), str(out), str(tokenizer), str(workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def megatron(inputs: Path, out: Path, tokenizer: Path, workers: int) -> None:
    command = [sys.executable, __file__, "--megatron", str(inputs), str(out), str(tokenizer), str(workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# --------------------------------------------------------------------------------------- Megatron's procedure

_tokenizer = None


def _load(path: str) -> None:
    import tokenizers

    global _tokenizer
    _tokenizer = tokenizers.Tokenizer.from_file(path)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _encode(line: str) -> list[int]:
    assert _tokenizer is not None
    ids = _tokenizer.encode(json.loads(line)["text"]).ids
    return [*ids, _tokenizer.token_to_id(EOS)]


def run_megatron(inputs: str, out: str, tokenizer: str, workers: str) -> None:
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    Path(out).mkdir()
    builder = IndexedDatasetBuilder(f"{out}/text.bin", dtype=np.uint16)
    with multiprocessing.Pool(int(workers), initializer=_load, initargs=(tokenizer,)) as pool:
        for path in sorted(Path(inputs).iterdir()):
            with path.open(encoding="utf-8") as lines:
                for ids in pool.imap(_encode, lines, 32):
                    builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
    builder.finalize(f"{out}/text.idx")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=25)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for temporary files")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--megatron"]:
        run_megatron(*sys.argv[2:])
    else:
        main()
