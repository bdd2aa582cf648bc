"""English into French: a small T5 from scratch, at several points of its training, beside the source copied."""

import json
import random
from pathlib import Path

from proofs.bench import Bench, Row, Took, figure, read_scores

WORDS = {"source": 12, "target": 20}
"""Pairs of no more words than these are taken."""
HELD_OUT = 300
POINTS = (100, 200, 400, 800, 1600, 3200)
LENGTH = 48
SENTINELS = 100
COLUMNS = ("BLEU", "chrF2")


def translation(bench: Bench) -> None:
    """BLEU and chrF of short paragraphs of package descriptions."""
    folder = bench.asset("translation-en-fr")
    train, test = (_short(folder / f"{name}.jsonl") for name in ("train", "test"))
    test = test[:HELD_OUT]
    bench.write_lines("test.jsonl", test)
    data = bench.write_lines("train.jsonl", train)
    text = bench.write_lines("text.jsonl", ({"text": pair[side]} for pair in train for side in WORDS))
    copied = ({"predicted": pair["source"], "target": pair["target"]} for pair in test)
    scores = bench.predictions("copied", "sequence_to_sequence", copied)
    rows = [Row("the source, copied", {"BLEU": figure(scores, "bleu", 1), "chrF2": figure(scores, "chrf", 1)})]
    special = ["<pad>", *(f"<extra_id_{number}>" for number in range(SENTINELS))]
    tokenizer = bench.folder / "tokenizer.model"
    words = [f"--special-token={token}" for token in special]
    bench.bigtrain("tokenizer", "train", text, "--output", tokenizer, "--vocab-size", "4096", *words)
    run = bench.folder / "run"
    config = _config(bench, data, tokenizer, run)
    took = Took()
    for steps in POINTS:
        took += bench.bigtrain("finetune", config, f"training.steps={steps}")
        output = bench.folder / f"after-{steps}"
        bench.bigtrain("evaluate", run, bench.folder / "test.jsonl", "--output", output)
        scores = read_scores(output / "test.scores.json")
        about = f"{len(train):,} pairs, {steps * 64 / len(train):.2f} times"
        figures = {"BLEU": figure(scores, "bleu", 1), "chrF2": figure(scores, "chrf", 1)}
        rows.append(Row(f"small T5 after {steps:,} steps", figures, about, took))
    signatures = ", ".join(f"`{signature}`" for signature in scores["details"]["signatures"].values())
    left = f"{len(test)} held-out pairs; {signatures}. Seconds count from the beginning of training.\n"
    bench.save(COLUMNS, rows, [left])


def _short(path: Path) -> list[dict[str, str]]:
    """The short pairs, in a drawn order."""
    pairs: list[dict[str, str]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(pairs)
    return [pair for pair in pairs if all(len(pair[side].split()) <= most for side, most in WORDS.items())]


def _config(bench: Bench, data: Path, tokenizer: Path, run: Path) -> Path:
    return bench.write(
        "finetune.yaml",
        {
            "model": {
                "architecture": "t5",
                "vocab_size": 4096,
                "hidden_size": 192,
                "num_hidden_layers": 2,
                "num_decoder_layers": 2,
                "num_attention_heads": 6,
                "intermediate_size": 512,
                "position_embedding": "relative",
                "norm_eps": 1e-6,
                "hidden_act": "relu",
                "gated_mlp": False,
                "tie_word_embeddings": True,
            },
            "tokenizer": {"path": str(tokenizer)},
            "finetune": {
                "task": "sequence_to_sequence",
                "train": str(data),
                "prompt": "{source}",
                "max_target_length": LENGTH,
            },
            "optimizer": {"lr": 2e-3, "weight_decay": 0.01},
            "schedule": {"name": "constant", "warmup_steps": 100},
            "training": {
                "output_dir": str(run),
                "steps": POINTS[-1],
                "global_batch_size": 64,
                "micro_batch_size": 64,
                "sequence_length": LENGTH,
                "precision": "bf16",
            },
            "checkpoint": {"interval": 0},
            "logging": {"wandb": "disabled"},
        },
    )
