"""Tokens a second that a model makes: bigtrain's generation from a checkpoint beside `transformers`' own `generate`.

The same random Llama in float32, the same prompts of different lengths, the likeliest token always; in one process, in
turn. Without the loading of the model. Memory is what one batch adds to the process at most. Prints one JSON line.

    python benchmarks/generate.py --batch-sizes 1 8
"""

import argparse
import contextlib
import json
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.evaluate.generate import LanguageModel, generate, open_model
from bigtrain.evaluate.sampling import Sampling
from bigtrain.prepare.train_tokenizer import train_sentencepiece

Tokens = list[list[int]]


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = random_llama(options)
        prepare(theirs, folder)
        rows = prompts(options)
        model = open_model(folder / "run")
        with model.loaded() as loaded:
            held: Any = SimpleNamespace(
                positions=model.positions,
                ends=frozenset(),
                encode=lambda place: rows[int(place)],
                decode=lambda ids: "",
                loaded=lambda: contextlib.nullcontext(loaded),
            )
            results = [race(held, theirs.eval(), rows[:size], options) for size in options.batch_sizes]
    result = {
        "benchmark": "generate",
        "batches": results,
        "parameters": sum(parameter.numel() for parameter in theirs.parameters()),
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {package: version(package) for package in ("torch", "megatron-core", "transformers")},
    }
    print(json.dumps(result))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of the longest; the shortest has half")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="of each; the first is not counted")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=8192)
    return parser.parse_args()


def random_llama(options: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "hidden_size": options.hidden_size,
        "intermediate_size": options.hidden_size * 8 // 3 // 64 * 64,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden_size // 64,
        "num_key_value_heads": options.hidden_size // 128,
        "vocab_size": options.vocab_size,
        "max_position_embeddings": options.prompt_tokens + options.new_tokens,
    }
    return LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=None, eos_token_id=None))


def prepare(model: LlamaForCausalLM, folder: Path) -> None:
    """The model as a checkpoint; a tokenizer has to be there and is not used."""
    model.save_pretrained(folder / "hf")
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_text(encoding="utf-8")
    train_sentencepiece([text], folder / "hf" / "tokenizer.model", 400)
    convert_from_hf(folder / "hf", folder / "run", verify=False)


def prompts(options: argparse.Namespace) -> Tokens:
    count = max(options.batch_sizes)
    longest = options.prompt_tokens
    lengths = [longest - longest // 2 * row // max(1, count - 1) for row in range(count)]
    return [torch.randint(3, 400, (length,)).tolist() for length in lengths]


def race(model: LanguageModel, theirs: PreTrainedModel, rows: Tokens, options: argparse.Namespace) -> dict[str, Any]:
    """Both in turn."""

    def ours() -> Tokens:
        places = [str(place) for place in range(len(rows))]
        made = generate(model, places, Sampling(temperature=0), max_new_tokens=options.new_tokens, batch_size=len(rows))
        return [list(one.ids) for one in made]

    def of_transformers() -> Tokens:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        made = theirs.generate(
            ids, attention_mask=seen, do_sample=False, max_new_tokens=options.new_tokens, pad_token_id=0
        )
        return made[:, longest:].tolist()

    contenders = {"bigtrain": ours, "transformers": of_transformers}
    measured: dict[str, list[tuple[float, int, Tokens]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, work in contenders.items():
            measured[name].append(measure(work))
    rates, memory = {}, {}
    for name, values in measured.items():
        rates[name] = len(rows) * options.new_tokens / statistics.median(seconds for seconds, _, _ in values[1:])
        memory[name] = max(added for _, added, _ in values)
    return {
        "batch_size": len(rows),
        "tokens_per_second": rates,
        "ratio": rates["bigtrain"] / rates["transformers"],
        "memory_added_bytes": memory,
        "same_tokens": measured["bigtrain"][0][2] == measured["transformers"][0][2],
    }


def measure(work: Callable[[], Tokens]) -> tuple[float, int, Tokens]:
    Path("/proc/self/clear_refs").write_text("5")  # the highest point counts from here
    before = resident_bytes("VmRSS")
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, resident_bytes("VmHWM") - before, made


def resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
