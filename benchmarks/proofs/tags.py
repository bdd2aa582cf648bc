"""Entities in tweets, and parts of speech: MiniLM's weights beside what a list of words knows."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from proofs.bench import Bench, Row, figure
from proofs.minilm import from_minilm

Sentence = list[tuple[str, str]]
Figures = Callable[[Mapping[str, Any]], dict[str, str]]


def entities(bench: Bench) -> None:
    """Ten types of entities, from a few tweets."""
    train, test = _sentences(bench, "ner")

    def figures(scores: Mapping[str, Any]) -> dict[str, str]:
        return {"F1 of entities": figure(scores, "f1"), "accuracy of tokens": figure(scores, "accuracy")}

    rows = [
        _by_word(bench, "always O", train, test, figures, known=False),
        _by_word(bench, "the commonest tag of each word", train, test, figures),
        _fine_tuned(bench, train, test, figures, steps=180),
    ]
    bench.save(("F1 of entities", "accuracy of tokens"), rows)


def speech(bench: Bench) -> None:
    """Parts of speech in the Brown corpus."""
    train, test = (part[:count] for part, count in zip(_sentences(bench, "brown"), (6400, 2000), strict=True))
    kinds = {tag for sentence in train for _, tag in sentence}
    test = [sentence for sentence in test if all(tag in kinds for _, tag in sentence)]

    def figures(scores: Mapping[str, Any]) -> dict[str, str]:
        return {"accuracy of tokens": figure(scores, "accuracy"), "tags, macro F1": figure(scores, "f1")}

    rows = [
        _by_word(bench, "always the commonest tag", train, test, figures, known=False),
        _by_word(bench, "the commonest tag of each word", train, test, figures),
        _fine_tuned(bench, train, test, figures, steps=200),
    ]
    left = (
        f"Of 2,000 held-out sentences {len(test):,}, those whose tags all occur in the {len(train):,} learned from.\n"
    )
    bench.save(("accuracy of tokens", "tags, macro F1"), rows, [left])


def _fine_tuned(bench: Bench, train: list[Sentence], test: list[Sentence], figures: Figures, steps: int) -> Row:
    for name, sentences in (("train", train), ("test", test)):
        text = "\n\n".join("\n".join(f"{token}\t{tag}" for token, tag in sentence) for sentence in sentences)
        (bench.folder / f"{name}.conll").write_text(text + "\n", encoding="utf-8")
    options = {"task": "tagging", "train": str(bench.folder / "train.conll"), "metric": "accuracy"}
    training = {"steps": steps, "global_batch_size": 32, "micro_batch_size": 16, "sequence_length": 96}
    training["validation_interval"] = steps // 3
    scores, took = from_minilm(bench, options, training, bench.folder / "test.conll")
    about = f"{len(train):,} sentences, {steps} steps of 32 of up to 96 tokens"
    return Row("MiniLM's weights, fine-tuned", figures(scores), about, took)


def _by_word(
    bench: Bench, name: str, train: list[Sentence], test: list[Sentence], figures: Figures, known: bool = True
) -> Row:
    """A word's commonest tag in training; of one that was never seen, or of all, the commonest."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in train:
        for token, tag in sentence:
            counts[token][tag] += 1
    commonest = sum(counts.values(), Counter[str]()).most_common(1)[0][0]
    best = {token: tags.most_common(1)[0][0] for token, tags in counts.items()} if known else {}
    rows = (
        {"predicted": [best.get(token, commonest) for token, _ in sentence], "tags": [tag for _, tag in sentence]}
        for sentence in test
    )
    scores = bench.predictions("by-word" if known else "one-tag", "tagging", rows)
    return Row(name, figures(scores), f"{len(train):,} sentences")


def _sentences(bench: Bench, asset: str) -> tuple[list[Sentence], list[Sentence]]:
    """Those to learn from and those held out, each in a drawn order."""
    folder = bench.asset(asset)
    found = []
    for name in ("train", "test"):
        parts = (folder / f"{name}.conll").read_text(encoding="utf-8").strip().split("\n\n")
        sentences: list[Sentence] = [
            [(token, tag) for token, _, tag in (line.partition("\t") for line in part.splitlines())] for part in parts
        ]
        random.Random(0).shuffle(sentences)
        found.append(sentences)
    return found[0], found[1]
