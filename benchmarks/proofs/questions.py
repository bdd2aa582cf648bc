"""Questions by template on Debian's package index: MiniLM's weights beside shared words."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from proofs.bench import Bench, Row, figure
from proofs.minilm import from_minilm

CONTEXTS = {"train": 400, "test": 100}
STEPS = 80
LENGTH = 256
COLUMNS = ("exact match", "F1", "F1 of answerable ones", "F1 of unanswerable ones")


def questions(bench: Bench) -> None:
    """Answers within a context, or none."""
    folder = bench.asset("qa")
    for name, count in CONTEXTS.items():
        document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        (article,) = document["data"]
        article["paragraphs"] = article["paragraphs"][:count]
        (bench.folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
        asked = list(_asked(article["paragraphs"]))
    nothing = ({"predicted": "", "answers": right} for _, _, right in asked)
    shared = ({"predicted": most_shared(context, asks), "answers": right} for context, asks, right in asked)
    rows = [
        Row("never an answer", _figures(bench.predictions("nothing", "question_answering", nothing))),
        Row("the sentence that shares most words", _figures(bench.predictions("words", "question_answering", shared))),
    ]
    options: dict[str, Any] = {"task": "question_answering", "train": str(bench.folder / "train.json"), "metric": "f1"}
    options |= {"stride": 64, "max_answer_length": 48}
    training = {"steps": STEPS, "global_batch_size": 16, "micro_batch_size": 8, "sequence_length": LENGTH}
    training["validation_interval"] = STEPS // 2
    scores, took = from_minilm(bench, options, training, bench.folder / "test.json")
    about = f"{CONTEXTS['train']:,} contexts, {STEPS} steps of 16 questions of up to {LENGTH} tokens"
    rows.append(Row("MiniLM's weights, fine-tuned", _figures(scores), about, took))
    bench.save(COLUMNS, rows)


def most_shared(context: str, question: str) -> str:
    """Of the sentences on the package that is asked for, the one with the most words of the question, without these."""
    asked = set(_words(question))
    name = next((name for name in re.findall(r"(\S+) is a package of Debian\.", context) if name in question), "")
    _, _, after = context.partition(f"{name} is a package of Debian. ")
    about = re.split(r"\S+ is a package of Debian\.", after)[0]
    sentences = re.split(r"(?<=\.) ", about.strip())
    best = max(sentences, key=lambda sentence: len(asked.intersection(_words(sentence))))
    return " ".join(word for word in best.rstrip(".").split() if not asked.intersection(_words(word)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _asked(paragraphs: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[str]]]:
    """Context, question, and what is right."""
    for paragraph in paragraphs:
        for entry in paragraph["qas"]:
            yield paragraph["context"], entry["question"], [answer["text"] for answer in entry["answers"]]


def _figures(scores: Mapping[str, Any]) -> dict[str, str]:
    names = ("exact_match", "f1", "f1_answerable", "f1_unanswerable")
    return {column: figure(scores, name, 1) for column, name in zip(COLUMNS, names, strict=True)}
