"""Sentiment of film reviews: counted words, a small BERT from scratch and one pretrained here, and MiniLM's weights."""

import csv
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from proofs.bench import Bench, Row, Took, figure, p_value, read_scores

LABELLED = 9800
"""Reviews of which MiniLM learns the labels."""
FEW = 500
"""Of which the small ones do."""
PRETRAINING = 8000
"""Steps by masked words."""
WORDS = 150
"""Of a longer review a third of so many words is kept from its beginning and the rest from its end."""
LENGTH = 192
COLUMNS = ("accuracy", "F1")
SMALL = {
    "architecture": "bert",
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": LENGTH,
    "position_embedding": "rope",
    "normalization": "layernorm",
    "norm_eps": 1e-12,
    "hidden_act": "gelu",
    "gated_mlp": False,
    "linear_bias": True,
    "tie_word_embeddings": True,
    "initializer_range": 0.09,
}

Rows = list[dict[str, str]]


def minilm(bench: Bench) -> None:
    """Fine-tuning from MiniLM's weights."""
    train, test = _reviews(bench)
    _write(bench.folder / "train.csv", train[:LABELLED])
    _write(bench.folder / "test.csv", test)
    model, run = bench.folder / "minilm", bench.folder / "from-minilm"
    began = bench.bigtrain("convert", "from-hf", bench.asset("minilm"), model)
    took = bench.bigtrain(
        "finetune",
        "configs/finetune/imdb.yaml",
        *_words(bench, run, 300),
        f"checkpoint.initialize_from={model}",
        "finetune.validation_fraction=0.02",
        "training.validation_interval=150",
        "optimizer.lr=1e-4",
        "training.precision=bf16",
        "model.hidden_dropout=0",
        "model.attention_dropout=0",
    )
    about = f"{LABELLED:,} reviews, 300 steps of 32 of {LENGTH} tokens"
    bench.save(COLUMNS, [_judged(bench, run, "MiniLM's weights, fine-tuned", about, began + took)])


def small(bench: Bench) -> None:
    """Counted words; a small BERT from scratch; the same, pretrained on the reviews' text."""
    train, test = _reviews(bench)
    _write(bench.folder / "train.csv", train[:FEW])
    _write(bench.folder / "test.csv", test)
    rows = [_counted(bench, train[:FEW], test), _counted(bench, train, test)]
    text = bench.write_lines("text.jsonl", ({"text": row["text"].replace("<br />", "\n")} for row in train))
    tokenizer, data, pretrained = (bench.folder / name for name in ("tokenizer", "data", "pretrained"))
    words = ("--vocab-size", "4096", "--type", "wordpiece", "--lowercase")
    bench.bigtrain("tokenizer", "train", text, "--output", tokenizer, *words)
    bench.bigtrain("data", "prepare", text, "--output", data, "--tokenizer", tokenizer, "--validation-fraction", "0.02")
    took = bench.bigtrain("pretrain", _pretraining(bench, data, pretrained))
    about = f"{FEW:,} reviews, 120 steps of 32 of {LENGTH} tokens"
    shape = [f"model={json.dumps(SMALL)}", f"tokenizer.path={tokenizer}"]
    scratch, of_scratch = _fine_tuned(bench, "from-scratch", shape)
    begun, of_begun = _fine_tuned(bench, "from-pretrained", [f"checkpoint.initialize_from={pretrained}"])
    rows.append(_judged(bench, scratch, "small BERT from scratch", about, of_scratch))
    against = scratch / "evaluation" / "test.predictions.jsonl"
    about += f"; before that the text of {len(train):,}, {PRETRAINING:,} steps of 16 of 128 tokens"
    rows.append(_judged(bench, begun, "the same, pretrained here", about, took + of_begun, against))
    p = p_value(read_scores(begun / "evaluation" / "test.scores.json"), "accuracy")
    bench.save(COLUMNS, rows, [f"Pretrained against from scratch: p = {p:.2g} (McNemar's exact test).\n"])


def _pretraining(bench: Bench, data: Path, output: Path) -> Path:
    return bench.write(
        "pretrain.yaml",
        {
            "model": SMALL,
            "data": {"train": str(data / "train"), "validation": str(data / "validation"), "mlm_probability": 0.3},
            "optimizer": {"lr": 2e-3, "weight_decay": 0.01, "betas": [0.9, 0.98]},
            "schedule": {"name": "linear", "warmup_steps": 300},
            "training": {
                "output_dir": str(output),
                "steps": PRETRAINING,
                "global_batch_size": 16,
                "micro_batch_size": 16,
                "sequence_length": 128,
                "precision": "fp32",
                "validation_interval": 1000,
                "validation_samples": 256,
            },
            "checkpoint": {"interval": 0},
            "logging": {"wandb": "disabled"},
        },
    )


def _fine_tuned(bench: Bench, name: str, words: Sequence[str]) -> tuple[Path, Took]:
    """A run, of which the checkpoint counts that is best on the reviews set aside for that; and what it took."""
    run = bench.folder / name
    took = bench.bigtrain(
        "finetune",
        "configs/finetune/imdb.yaml",
        *_words(bench, run, 120),
        *words,
        "finetune.validation_fraction=0.1",
        "finetune.classifier_pooling=mean",
        "training.validation_interval=30",
        "training.micro_batch_size=32",
        "schedule.warmup_steps=20",
        "optimizer.lr=1e-3",
    )
    return run, took


def _words(bench: Bench, run: Path, steps: int) -> list[str]:
    return [
        f"finetune.train={bench.folder / 'train.csv'}",
        "finetune.patience=0",
        f"training.output_dir={run}",
        f"training.steps={steps}",
        f"training.sequence_length={LENGTH}",
        "checkpoint.interval=0",
        "logging.wandb=disabled",
    ]


def _judged(bench: Bench, run: Path, name: str, about: str, took: Took, against: Path | None = None) -> Row:
    words: list[str | Path] = ["--against", against] if against else []
    bench.bigtrain("evaluate", run, bench.folder / "test.csv", *words)
    scores = read_scores(run / "evaluation" / "test.scores.json")
    return Row(name, {"accuracy": figure(scores, "accuracy"), "F1": figure(scores, "f1")}, about, took)


def _counted(bench: Bench, train: Rows, test: Rows) -> Row:
    """Words and pairs of words, on whole reviews."""
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2), LogisticRegression(C=10))
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    found = model.predict([row["text"] for row in test])
    rows = ({"predicted": said, "label": row["label"]} for said, row in zip(found, test, strict=True))
    scores = bench.predictions(f"tf-idf-{len(train)}", "classification", rows)
    about = f"{len(train):,} whole reviews"
    figures = {"accuracy": figure(scores, "accuracy"), "F1": figure(scores, "f1")}
    return Row("TF-IDF, logistic regression", figures, about)


def _reviews(bench: Bench) -> tuple[Rows, Rows]:
    """Those to learn from, in a drawn order, and those held out."""
    csv.field_size_limit(sys.maxsize)
    folder = bench.asset("imdb")
    train, test = (_read(folder / f"{name}.csv") for name in ("train", "test"))
    random.Random(0).shuffle(train)
    return train, test


def _read(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Rows) -> None:
    """As the models read them: beginning and end."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows({**row, "text": cut(row["text"])} for row in rows)


def cut(text: str) -> str:
    """The beginning and the end of a text."""
    words = text.split()
    return text if len(words) <= WORDS else " ".join([*words[: WORDS // 3], *words[WORDS // 3 - WORDS :]])
