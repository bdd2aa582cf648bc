"""SQuAD's JSON, v1.1 and v2: questions on a context, answered by a stretch of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.errors import DataError


@dataclass(frozen=True)
class Answer:
    """A stretch of the context."""

    text: str
    start: int
    """Characters before it."""


@dataclass(frozen=True)
class Question:
    """A question and what answers it."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None
    """Empty: the context does not answer it. None: the file does not say."""
    wrong: str = ""
    """Why it cannot be used; empty: it can."""


def read_squad(path: Path, labelled: bool) -> Iterator[Question]:
    """The questions of a file.

    An answer must be found at its offset; one that is not makes its question unusable, and `wrong` says so.

    Args:
        path: The file.
        labelled: Else questions may have no answers.

    Raises:
        DataError: It is not JSON, or lacks a key of the format.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a JSON file ({error})") from None
    seen: set[str] = set()
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for entry in paragraph["qas"]:
                    question = _question(entry, paragraph["context"], labelled)
                    if question.id in seen:
                        raise DataError(f"{path}: the id {question.id!r} is given to two questions")
                    seen.add(question.id)
                    yield question
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not in SQuAD's form, data[].paragraphs[] with context and qas[] of id, question and answers[]; "
            f"looked for {error}"
        ) from None


def _question(entry: dict[str, Any], context: str, labelled: bool) -> Question:
    name, question = str(entry["id"]), entry["question"]
    if not context.strip() or not question.strip():
        return Question(name, question, context, (), "with an empty context or question")
    if "answers" not in entry and not entry.get("is_impossible"):
        return Question(name, question, context, None, "without answers" if labelled else "")
    answers = () if entry.get("is_impossible") else tuple(_answer(given) for given in entry["answers"])
    if any(not a.text or context[a.start : a.start + len(a.text)] != a.text for a in answers):
        return Question(name, question, context, (), "with an answer that is not where its offset says")
    if not answers and not entry.get("is_impossible", not labelled):
        return Question(name, question, context, (), "without answers")
    return Question(name, question, context, answers)


def _answer(given: dict[str, Any]) -> Answer:
    return Answer(given["text"], int(given["answer_start"]))
