"""GB/s and peak memory of a conversion, beside `from_pretrained` and `save_pretrained` of `transformers`.

A random Llama in bfloat16 goes in and comes out again, and is loaded and saved by `transformers`, in turn, each in a
process of its own, which reports the seconds of the work alone and the most memory it ever had. What is read comes out
of the page cache for all. In GB/s of the bfloat16 weights. Nothing is verified, but for one more time each way, of
which the seconds are told apart. Prints one JSON line.

`--cores` tells whether processes would be faster than threads: a conversion has one core, then N, and then N
conversions that know nothing of each other have one core each, which no division into processes can beat.

    python benchmarks/convert.py --parameters 1e9
"""

import argparse
import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from bigtrain.convert.export import model_shapes
from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.safetensors_file import TensorFile
from bigtrain.convert.to_hf import convert_to_hf

MADE = {"from_hf": "here", "to_hf": "again", "transformers": "theirs"}


def main() -> None:
    options = parse_options()
    if options.work:
        print(json.dumps(work(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shapes = make_model(Path(folder), options.parameters)
        results: dict[str, list[dict[str, float]]] = {"from_hf": [], "to_hf": [], "transformers": []}
        for _ in range(options.rounds):
            for name, found in results.items():
                found.append(in_a_process(name, folder))
        verified = {name: in_a_process(name, folder, "--verify") for name in ("from_hf", "to_hf")}
        scaling = over_cores(folder, options.cores, options.rounds) if options.cores else {}
        source = sum(file.stat().st_size for file in (Path(folder) / "there").glob("*.safetensors"))
    largest = 4 * max(torch.Size(shape).numel() for shape in shapes.values())
    speed = {name: source / 1e9 / statistics.median(r["seconds"] for r in found) for name, found in results.items()}
    peak = {name: max(r["peak_bytes"] for r in found) for name, found in results.items()}
    result = {
        "benchmark": "convert",
        "gb_per_second": speed,
        "round_trip_ratio": 1 / (1 / speed["from_hf"] + 1 / speed["to_hf"]) / speed["transformers"],
        "peak_bytes": peak,
        "bound_bytes": 2 * largest + 500_000_000,
        "verified": verified,
        "seconds_over_cores": scaling,
        "largest_tensor_bytes": largest,
        "source_bytes": source,
        "all": results,
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
    }
    print(json.dumps(result))


def make_model(folder: Path, parameters: float) -> dict[str, tuple[int, ...]]:
    """A Llama of about so many parameters in `there`, in bfloat16, with a tokenizer; gives its tensors' shapes."""
    width = 2048
    layers = max(1, round((parameters - 2 * 32000 * width) / (13 * width * width)))
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=16,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    there = folder / "there"
    config.save_pretrained(there)
    shapes = model_shapes(config)
    file = TensorFile(there / "model.safetensors", shapes, torch.bfloat16)
    for name, shape in shapes.items():
        file.write(name, torch.randn(shape))
    file.close()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(there)
    return shapes


def in_a_process(name: str, folder: str, *words: str) -> dict[str, float]:
    return result_of(started(name, folder, *words))


def started(name: str, folder: str, *words: str, suffix: str = "") -> subprocess.Popen[str]:
    """A conversion in a process of its own, into a folder of its own."""
    shutil.rmtree(Path(folder) / (MADE[name] + suffix), ignore_errors=True)
    command = [sys.executable, *sys.argv, "--folder", folder, "--work", name, "--suffix", suffix, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, float]:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    return json.loads(said.splitlines()[-1])


def over_cores(folder: str, cores: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of one conversion on one core, of one on all, and of as many at once, each on a core of its own."""
    numbers = sorted(os.sched_getaffinity(0))[:cores]
    if len(numbers) < cores:
        raise SystemExit(f"--cores {cores}: this machine has {len(numbers)}")
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name in ("from_hf", "to_hf"):
            one = result_of(started(name, folder, "--on", str(numbers[0])))["seconds"]
            all_cores = result_of(started(name, folder, "--on", ",".join(map(str, numbers))))["seconds"]
            beside = [started(name, folder, "--on", str(core), suffix=f"-{core}") for core in numbers]
            at_once = max(result_of(process)["seconds"] for process in beside)
            for core in numbers:
                shutil.rmtree(Path(folder) / f"{MADE[name]}-{core}")
            kinds = found.setdefault(name, {"one_on_one": [], "one_on_all": [], "one_on_each": []})
            for kind, seconds in zip(kinds, (one, all_cores, at_once), strict=True):
                kinds[kind].append(seconds)
    return {name: {kind: statistics.median(s) for kind, s in kinds.items()} for name, kinds in found.items()}


def work(options: argparse.Namespace) -> dict[str, float]:
    if options.on:
        os.sched_setaffinity(0, map(int, options.on.split(",")))
    name, folder = options.work, Path(options.folder)
    output = folder / (MADE[name] + options.suffix)
    for module in ("card", "folder", "hf_config", "intake", "own_model", "verify"):  # imported when they are needed
        importlib.import_module(f"bigtrain.convert.{module}")
    began = time.perf_counter()
    if name == "from_hf":
        convert_from_hf(folder / "there", output, verify=options.verify)
    elif name == "to_hf":
        convert_to_hf(folder / "here", output, dtype="bfloat16", verify=options.verify)
    else:
        AutoModelForCausalLM.from_pretrained(folder / "there", dtype="auto").save_pretrained(output)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=1e9, help="size of the model, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where files are made; default: the system's temporary folder")
    parser.add_argument("--cores", type=int, help="also on one core and on so many")
    for word in ("--work", "--suffix", "--on"):
        parser.add_argument(word, help=argparse.SUPPRESS)
    parser.add_argument("--verify", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
