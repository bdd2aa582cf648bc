"""Answers in conversations: a small GPT by prompt, beside the same untrained and counted words."""

import json
import math
from collections import Counter
from pathlib import Path

from bigtrain.data.tokenizer import load_tokenizer
from proofs.bench import Bench, Row, Took

STEPS = 150
PROMPT = "User: {source}\nAssistant:"
COLUMNS = ("loss of a token of the answer", "perplexity")


def dialogue(bench: Bench) -> None:
    """The first question of each conversation and the answer to it."""
    folder = bench.asset("dialogue")
    pairs = {name: _pairs(folder / f"{name}.jsonl") for name in ("train", "test")}
    files = {name: bench.write_lines(f"{name}.jsonl", rows) for name, rows in pairs.items()}
    text = bench.write_lines("text.jsonl", ({"text": text} for pair in pairs["train"] for text in pair.values()))
    tokenizer = bench.folder / "tokenizer.model"
    bench.bigtrain("tokenizer", "train", text, "--output", tokenizer, "--vocab-size", "1024")
    rows = [Row("each token as often as in training", _figures(_counted(tokenizer, pairs)))]
    for name, words in (
        ("small GPT, untrained", ["training.steps=1", "schedule.warmup_steps=0", "optimizer.lr=1e-9"]),
        ("small GPT, fine-tuned by prompt", [f"training.steps={STEPS}"]),
    ):
        run = bench.folder / name.rpartition(", ")[2].partition(" ")[0]
        config = _config(bench, files, tokenizer)
        took = bench.bigtrain("finetune", config, f"training.output_dir={run}", *words)
        found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        loss = next(row["validation_loss"] for row in reversed(found) if "validation_loss" in row)
        trained = len(words) == 1
        about = f"{len(pairs['train']):,} pairs, {STEPS} steps of 32" if trained else ""
        rows.append(Row(name, _figures(loss), about, took if trained else Took()))
    note = f"{len(pairs['test'])} held-out pairs, which chose nothing: they are measured once, after the last step.\n"
    bench.save(COLUMNS, rows, [note])


def _pairs(path: Path) -> list[dict[str, str]]:
    conversations = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    found = {(first["content"], second["content"]) for first, second, *_ in conversations}
    return [{"source": source, "target": target} for source, target in sorted(found) if len(target.split()) <= 60]


def _figures(loss: float) -> dict[str, str]:
    return {COLUMNS[0]: f"{loss:.3f}", COLUMNS[1]: f"{math.exp(loss):,.1f}"}


def _counted(tokenizer: Path, pairs: dict[str, list[dict[str, str]]]) -> float:
    """The mean loss of a token of the answers by how often it occurs in those of training, and once more."""
    loaded = load_tokenizer(tokenizer)
    train, test = (
        [token for pair in pairs[name] for token in [*loaded.encode(pair["target"]), loaded.eos_id]]
        for name in ("train", "test")
    )
    counts = Counter(train)
    return -sum(math.log((counts[token] + 1) / (len(train) + loaded.vocab_size)) for token in test) / len(test)


def _config(bench: Bench, files: dict[str, Path], tokenizer: Path) -> Path:
    return bench.write(
        "finetune.yaml",
        {
            "model": {
                "vocab_size": 1024,
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 384,
                "max_position_embeddings": 192,
                "initializer_range": 0.05,
            },
            "tokenizer": {"path": str(tokenizer)},
            "finetune": {
                "task": "sequence_to_sequence",
                "train": str(files["train"]),
                "validation": str(files["test"]),
                "prompt": PROMPT,
            },
            "optimizer": {"lr": 2e-3, "weight_decay": 0.1},
            "schedule": {"name": "linear", "warmup_steps": 10},
            "training": {
                "output_dir": "runs/dialogue",
                "steps": STEPS,
                "global_batch_size": 32,
                "micro_batch_size": 32,
                "sequence_length": 192,
                "precision": "fp32",
            },
            "checkpoint": {"interval": 0},
            "logging": {"wandb": "disabled"},
        },
    )
