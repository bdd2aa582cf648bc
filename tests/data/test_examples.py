"""Labelled examples out of files that others wrote, and what is refused or left out."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from bigtrain.config.tasks import ColumnsConfig
from bigtrain.data.examples import check_labels, labels_of, read_examples, tag_scheme
from bigtrain.data.tags import entities, problem
from bigtrain.errors import DataError

REVIEWS = [
    {"text": 'A "fine" film,\nwith commas, and lines', "label": "pos", "n": 7},
    {"text": "Dreadful. Été 1942", "label": "neg", "n": 7},
    {"text": "123", "label": "pos", "n": 7},
]
COLUMNS = ColumnsConfig()


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_compressed(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(path.parent / "saved")
    (path.parent / "saved" / "data-00000-of-00001.arrow").rename(path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "a.csv": write_csv,
    "a.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "a.jsonl": write_lines,
    "a.jsonl.gz": write_compressed,
    "a.parquet": lambda path, rows: datasets.Dataset.from_list(rows).to_parquet(path),
    "a.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_table_reads_the_same(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, REVIEWS)
    found = read_examples(tmp_path / name, "classification", COLUMNS)
    assert [(e.text, e.pair, e.label) for e in found.examples] == [(r["text"], None, r["label"]) for r in REVIEWS]
    assert found.complaints() == ""
    assert labels_of(found) == ["neg", "pos"]


def test_pairs_numbers_and_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [{"a": "one", "b": "uno", "y": "0.5"}, {"a": "two", "b": "tres", "y": "-3"}])
    columns = ColumnsConfig(text="a", text_pair="b", label="y")
    found = read_examples(path, "regression", columns)
    assert [(e.text, e.pair, e.number) for e in found.examples] == [("one", "uno", 0.5), ("two", "tres", -3.0)]
    with pytest.raises(DataError, match=r"a\.csv: has no column 'text'; did you mean .*it has 'a', 'b', 'y'|no column"):
        read_examples(path, "regression", COLUMNS)
    write_csv(path, [{"a": "one", "b": "uno", "y": "much"}])
    with pytest.raises(DataError, match=r"row 1: the value of 'y' is 'much': a regression learns numbers"):
        read_examples(path, "regression", columns)


def test_classes_are_names_and_numbers_sort_by_value(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": label} for label in (10, 9, 2.0, 9)])
    found = read_examples(tmp_path / "a.jsonl", "classification", COLUMNS)
    assert labels_of(found) == ["2", "9", "10"]
    write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": 0.5}])
    with pytest.raises(DataError, match=r"line 1: the value of 'label' is 0\.5: a class is text or a whole number"):
        read_examples(tmp_path / "a.jsonl", "classification", COLUMNS)


def test_what_is_empty_is_left_out_and_told(tmp_path: Path) -> None:
    rows = [{"text": "good", "label": "pos"}, {"text": " \n", "label": "pos"}, {"text": "bad", "label": None}, {}]
    write_lines(tmp_path / "a.jsonl", rows)
    found = read_examples(tmp_path / "a.jsonl", "classification", COLUMNS)
    assert len(found) == 1
    assert found.complaints() == (
        f"{tmp_path / 'a.jsonl'}: 3 of 4 examples left out: 2 with an empty text, 1 without a label "
        "(line 2, line 3, line 4)"
    )
    unlabelled = read_examples(tmp_path / "a.jsonl", "classification", COLUMNS, labelled=False)
    assert [e.label for e in unlabelled.examples] == ["pos", None]


def test_labels_that_training_did_not_have_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": label} for label in ("neutral", "pos", "neutral")])
    found = read_examples(tmp_path / "a.jsonl", "classification", COLUMNS)
    with pytest.raises(
        DataError, match=r"a\.jsonl: has labels that train\.csv does not: 'neutral' \(2 times\); it has"
    ):
        check_labels(found, ["neg", "pos"], "train.csv")
    check_labels(found, ["neutral", "pos"], "train.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", "", "by the end of its name; this one is none of them"),
        ("a.csv", "text,label\n", "holds no example"),
        ("a.csv", 'text,label\n"one,two\n', "cannot be read"),
        ("a.jsonl", "{}\nnot json\n", "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.parquet", "text", "cannot be read"),
        ("a.arrow", "text", "cannot be read"),
        ("missing/a.csv", None, "no such file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_examples(tmp_path / name, "classification", COLUMNS)


CONLL = "-DOCSTART- O\n\nEU\tB-ORG\nrejects\tO\nGerman\tB-MISC\ncall\tI-MISC\n\t\n\nPeter\tB-PER\nBlackburn\tI-PER\n"


def test_conll(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(CONLL)
    found = read_examples(path, "tagging", COLUMNS)
    assert [(e.where, e.tokens, e.tags) for e in found.examples] == [
        ("line 3", ("EU", "rejects", "German", "call"), ("B-ORG", "O", "B-MISC", "I-MISC")),
        ("line 9", ("Peter", "Blackburn"), ("B-PER", "I-PER")),
    ]
    assert labels_of(found) == ["O", "B-MISC", "I-MISC", "B-ORG", "B-PER", "I-PER"]
    assert tag_scheme(found) == "BIO"
    rows = [{"tokens": list(e.tokens), "tags": list(e.tags or ())} for e in found.examples]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    table = read_examples(tmp_path / "a.parquet", "tagging", COLUMNS)
    assert [(e.tokens, e.tags) for e in table.examples] == [(e.tokens, e.tags) for e in found.examples]


def test_sentences_whose_tags_contradict_one_another_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(CONLL + "\nthe\tO\nUN\tI-ORG\n")
    found = read_examples(path, "tagging", COLUMNS)
    assert found.skipped == [("line 12", "with I-ORG where no ORG has begun")]
    path.write_text("UN\tI-ORG\n\nEU\tB-ORG\n\nWHO\tI-ORG\n")
    with pytest.raises(DataError, match=r"2 of 3 sentences are not BIO, line 1 for one .*IOB1"):
        read_examples(path, "tagging", COLUMNS)
    path.write_text("UN\tB-ORG\nis\tVERB\n")
    with pytest.raises(DataError, match="'B-ORG' mark entities, but 'VERB' are tags neither of BIO nor of BIOES"):
        read_examples(path, "tagging", COLUMNS)
    path.write_text("UN\tB-ORG\nis\n")
    with pytest.raises(DataError, match="line 2: 'is' has no tag"):
        read_examples(path, "tagging", COLUMNS)


@pytest.mark.parametrize(
    ("tags", "wrong"),
    [
        ("B-X I-X E-X O S-Y", ""),
        ("B-X E-X B-X E-X", ""),
        ("B-X I-X O", "with I-X that nothing ends"),
        ("B-X B-X E-X", "with B-X that nothing ends"),
        ("B-X E-Y", "with E-Y where no Y has begun"),
        ("S-X E-X", "with E-X where no X has begun"),
        ("B-X", "with B-X that nothing ends"),
    ],
)
def test_bioes(tags: str, wrong: str) -> None:
    assert problem(tags.split(), "BIOES") == wrong


def test_entities_are_those_of_seqeval() -> None:
    """On random sequences, sound or not; of BIOES the sound ones, as its default mode takes no sides on others."""
    import random

    from seqeval.metrics.sequence_labeling import get_entities

    random.seed(0)
    for _ in range(500):
        tags = random.choices(["O", "B-X", "I-X", "B-Y", "I-Y"], k=8)
        theirs = sorted((kind, begin, end + 1) for kind, begin, end in get_entities(tags))
        assert sorted(entities(tags, "BIO")) == theirs, tags
        tags = random.choices(["O", "B-X", "I-X", "E-X", "S-X", "S-Y"], k=5)
        if not problem(tags, "BIOES"):
            theirs = sorted((kind, begin, end + 1) for kind, begin, end in get_entities(tags))
            assert sorted(entities(tags, "BIOES")) == theirs, tags


def squad(*questions: dict[str, Any]) -> str:
    context = "The Amazon rainforest covers 5,500,000 km²."
    return json.dumps({"version": "2", "data": [{"title": "", "paragraphs": [{"context": context, "qas": questions}]}]})


def test_squad(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    first = {"id": "1", "question": "What?", "answers": [{"text": "Amazon", "answer_start": 4}]}
    none = {"id": "2", "question": "Who?", "answers": [], "is_impossible": True}
    shifted = {"id": "3", "question": "What?", "answers": [{"text": "Amazon", "answer_start": 5}]}
    partly = {"id": "4", "question": "What?", "answers": [*shifted["answers"], *first["answers"]]}
    path.write_text(squad(first, none, shifted, partly))
    found = read_examples(path, "question_answering", COLUMNS)
    assert [(e.where, [(a.text, a.start) for a in e.answers or ()]) for e in found.examples] == [
        ("1", [("Amazon", 4)]),
        ("2", []),
    ]
    assert found.skipped == [(name, "with an answer that is not where its offset says") for name in ("3", "4")]
    path.write_text(squad(first, first))
    with pytest.raises(DataError, match="the id '1' is given to two questions"):
        read_examples(path, "question_answering", COLUMNS)
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}))
    with pytest.raises(DataError, match="holds no example"):
        read_examples(path, "question_answering", COLUMNS)
    path.write_text(json.dumps([1]))
    with pytest.raises(DataError, match="not in SQuAD's form"):
        read_examples(path, "question_answering", COLUMNS)


def test_source_and_target(tmp_path: Path) -> None:
    rows = [{"source": "good day", "target": "bonjour"}, {"source": "night", "target": ""}]
    write_csv(tmp_path / "a.tsv", rows, "\t")
    found = read_examples(tmp_path / "a.tsv", "sequence_to_sequence", COLUMNS)
    assert [(e.text, e.pair) for e in found.examples] == [("good day", "bonjour")]
    assert found.skipped == [("row 2", "with an empty text")]
