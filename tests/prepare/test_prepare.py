"""From files to datasets: every document once, the same bytes whatever the number of workers."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.data.inspect import inspect
from bigtrain.data.manifest import MANIFEST
from bigtrain.data.shards import open_dataset
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.data.verify import verify
from bigtrain.errors import DataError
from bigtrain.prepare.encode import ordered_map
from bigtrain.prepare.prepare import Prepared, prepare


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(folder: Path) -> list[tuple[str, int, str]]:
    """(source, position, decoded text) of a dataset's documents, each checked to end as a document must."""
    dataset = open_dataset(folder)
    tokenizer = dataset.load_tokenizer()
    rows = []
    for index in range(dataset.documents):
        document = dataset.document(index)
        assert document.tokens[-1] == tokenizer.eos_id
        rows.append((document.source, document.position, tokenizer.decode(document.tokens[:-1])))
    return rows


def rejects(output: Path) -> list[tuple[str, int, str]]:
    lines = (output / "rejects.jsonl").read_text().splitlines()
    return [(row["source"], row["position"], row["reason"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("kind", ["bpe_path", "json_path"])
def test_every_file_is_one_document_in_the_order_of_names(
    kind: str, corpus: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = prepare([corpus], tmp_path / "output", request.getfixturevalue(kind), workers=1)
    paths = sorted(corpus.rglob("*.py"), key=lambda path: path.relative_to(corpus).as_posix())
    written = [path.read_bytes() for path in paths]
    assert texts(tmp_path / "output" / "train") == [
        (f"corpus/{path.relative_to(corpus).as_posix()}", 0, text.decode())
        for path, text in zip(paths, written, strict=True)
    ]
    dataset = open_dataset(tmp_path / "output" / "train")
    assert made == Prepared(train=dataset.manifest, validation=None, rejected=0)
    assert (made.train.documents, made.train.bytes) == (60, sum(map(len, written)))
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["rejects.jsonl", "train"]
    verify(tmp_path / "output" / "train")


@pytest.fixture(scope="module")
def mixed(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text files, a `.jsonl` file of more than two pieces, and things that are no text."""
    root = tmp_path_factory.mktemp("inputs") / "mixed"
    (root / "texts").mkdir(parents=True)
    for number, text in enumerate(sources):
        (root / "texts" / f"{number}.txt").write_bytes(text.encode())
    (root / "texts" / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (root / "texts" / "empty.txt").touch()
    with (root / "records.jsonl").open("w", encoding="utf-8") as file:
        for number in range(4_000):
            start = number * 7 % 15_000
            text = sources[number % len(sources)][start : start + 600]
            file.write(json.dumps({"id": number, "text": f"{number}\n{text}"}) + "\n")
    assert (root / "records.jsonl").stat().st_size > 2 * 2**20
    return root


def test_the_result_does_not_depend_on_the_workers(mixed: Path, bpe_path: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        made = prepare(
            [mixed],
            tmp_path / f"by{workers}",
            bpe_path,
            validation_fraction=0.1,
            tokens_per_shard=70_000,
            workers=workers,
        )
    assert contents(tmp_path / "by1") == contents(tmp_path / "by2")
    assert len(made.train.shards) >= 3
    assert made.rejected == 2
    assert not any(str(tmp_path).encode() in content for content in contents(tmp_path / "by2").values())

    found = texts(tmp_path / "by1" / "train") + texts(tmp_path / "by1" / "validation")
    with (mixed / "records.jsonl").open(encoding="utf-8") as file:
        records = [("mixed/records.jsonl", number, json.loads(line)["text"]) for number, line in enumerate(file)]
    files = [(f"mixed/texts/{path.name}", 0, path.read_bytes().decode()) for path in (mixed / "texts").glob("?.txt")]
    assert sorted(found) == sorted(records + files)
    assert made.validation is not None
    assert 0.07 < made.validation.documents / 4_010 < 0.13


def test_equal_documents_lie_on_one_side(bpe_path: Path, tmp_path: Path) -> None:
    with (tmp_path / "records.jsonl").open("w") as file:
        for number in range(600):
            file.write(json.dumps({"text": f"document {number % 150}"}) + "\n")
    prepare([tmp_path / "records.jsonl"], tmp_path / "output", bpe_path, validation_fraction=0.3, workers=1)
    train, held_out = (
        Counter(text for *_, text in texts(tmp_path / "output" / side)) for side in ("train", "validation")
    )
    assert not train.keys() & held_out.keys()
    assert set((train + held_out).values()) == {4}
    assert 25 < len(held_out) < 65


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    documents=st.lists(st.text(min_size=1).filter(lambda text: "\u2581" not in text and not text.isspace()), min_size=1)
)
def test_documents_come_back_exactly(
    documents: list[str], bpe_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("exact")
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    made = prepare([folder / "in.jsonl"], folder / "output", bpe_path, workers=1)
    assert [text for *_, text in texts(folder / "output" / "train")] == documents
    assert made.train.bytes == sum(len(text.encode()) for text in documents)


def test_what_is_no_text_is_left_out_and_listed(bpe_path: Path, tmp_path: Path) -> None:
    lines = [
        b'{"text": "good", "more": [1]}',
        b'{"txt": "a"}',
        b"not json",
        b"",
        b'{"text": 3}',
        b'{"text": "\\ud800"}',
        b'["text"]',
        b'{"text": " \\n "}',
        b'{"text": "end \xff"}',
        b"[" * 100_000,
        b'{"text": "last, without a line end"}',
    ]
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.jsonl").write_bytes(b"\n".join(lines))
    (root / "b.jsonl").touch()
    (root / "c.txt").write_bytes(b"\n\n")
    (root / "d.bin").write_bytes(bytes(range(256)))
    made = prepare([root], tmp_path / "output", bpe_path, workers=1)
    assert texts(tmp_path / "output" / "train") == [
        ("in/a.jsonl", 0, "good"),
        ("in/a.jsonl", 10, "last, without a line end"),
    ]
    found = rejects(tmp_path / "output")
    assert made.rejected == len(found) == 12
    assert [(source, position) for source, position, _ in found] == [
        *(("in/a.jsonl", number) for number in range(1, 10)),
        ("in/b.jsonl", 0),
        ("in/c.txt", 0),
        ("in/d.bin", 0),
    ]
    reasons = [
        "no key 'text'",
        "not JSON: Expecting value",
        "empty",
        "the value of 'text' is no string",
        "not UTF-8: surrogates",
        "no key 'text'",
        "empty",
        "not UTF-8: invalid start byte at 14",
        "",  # the parser's own word for too deep a nesting
        "empty",
        "empty",
        "not UTF-8: invalid start byte at 128",
    ]
    for (*_, reason), expected in zip(found, reasons, strict=True):
        assert reason.startswith(expected)


def test_files_are_chosen_by_name(corpus: Path, bpe_path: Path, tmp_path: Path) -> None:
    (corpus / "part1" / "notes.txt").write_text("not asked for")
    single = tmp_path / "single.md"
    single.write_text("a file that is named is taken, whatever its name")
    prepare([single, corpus], tmp_path / "output", bpe_path, pattern="*.py", exclude=["part0", "4?.*"], workers=1)
    found = [source for source, *_ in texts(tmp_path / "output" / "train")]
    assert found[0] == "single.md"
    assert found[1:] == sorted(
        f"corpus/part{number % 3}/{number:02d}.py" for number in range(60) if number % 3 and number // 10 != 4
    )


def test_a_file_name_need_not_be_utf8(bpe_path: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / b"caf\xe9.txt".decode(errors="surrogateescape")).write_text("text")
    prepare([root], tmp_path / "output", bpe_path, workers=1)
    assert texts(tmp_path / "output" / "train") == [(r"in/caf\udce9.txt", 0, "text")]


def test_the_tokenizer_lies_beside_the_data(corpus: Path, json_path: Path, tmp_path: Path) -> None:
    prepare([corpus], tmp_path / "output", json_path.parent, validation_fraction=0.5, workers=1)
    for side in ("train", "validation"):
        assert (tmp_path / "output" / side / "tokenizer.json").read_bytes() == json_path.read_bytes()
        assert open_dataset(tmp_path / "output" / side).load_tokenizer().eos_id == load_tokenizer(json_path).eos_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ["nowhere"]}, "nowhere: no such file or folder"),
        ({"inputs": []}, r"no file matches '\*' in no input at all"),
        ({"pattern": "*.rs"}, r"no file matches '\*\.rs' in .*corpus"),
        ({"tokenizer": "nowhere.model"}, r"nowhere\.model: the tokenizer cannot be read"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; it must be at least 0 and below 1"),
        ({"validation_fraction": -0.1}, "validation_fraction is -0.1"),
        ({"validation_fraction": 1e-9}, "validation_fraction 1e-09 holds out none of 60 documents"),
        ({"validation_fraction": 1 - 1e-9}, "no document is left for training; the inputs hold none"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_prepared_is_refused_and_leaves_nothing(
    options: dict[str, object], message: str, corpus: Path, bpe_path: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    arguments = {"inputs": [corpus], "output": tmp_path / "output", "tokenizer": bpe_path, "workers": 1} | options
    with pytest.raises(DataError, match=message):
        prepare(**arguments)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_a_wrong_text_key_is_told_by_the_first_record(bpe_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"content": "a"}\n{"content": "b"}\n')
    with pytest.raises(DataError, match=r"2 were rejected, the first in\.jsonl record 0: no key 'text'"):
        prepare([tmp_path / "in.jsonl"], tmp_path / "output", bpe_path, workers=1)
    prepare([tmp_path / "in.jsonl"], tmp_path / "output", bpe_path, text_key="content", workers=1)
    assert [text for *_, text in texts(tmp_path / "output" / "train")] == ["a", "b"]


def test_an_output_that_exists_is_left_alone(corpus: Path, bpe_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "precious").touch()
    with pytest.raises(DataError, match="output: exists already"):
        prepare([corpus], output, bpe_path, workers=1)
    assert [path.name for path in output.iterdir()] == ["precious"]


def test_an_error_in_a_worker_reaches_the_user(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.model"
    with pytest.raises(DataError, match=r"nowhere\.model: the tokenizer cannot be read"):
        list(ordered_map(load_tokenizer, [missing] * 20, workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_the_work_is_taken_little_by_little(workers: int) -> None:
    work = iter(range(-100, 0))
    results = ordered_map(abs, work, workers)
    assert [next(results) for _ in range(10)] == [(-number, number) for number in range(100, 90, -1)]
    assert next(work) < -60
    results.close()


def test_inspect_tells_what_is_inside(corpus: Path, bpe_path: Path, tmp_path: Path) -> None:
    prepare([corpus], tmp_path / "output", bpe_path, tokens_per_shard=5000, workers=1)
    folder = tmp_path / "output" / "train"
    tokenizer = load_tokenizer(bpe_path)
    files = sorted(corpus.rglob("*.py"))
    lengths = [len(tokenizer.encode(path.read_bytes().decode())) + 1 for path in files]
    found = inspect(folder, documents=2)
    assert found.manifest == open_dataset(folder).manifest
    assert (found.shortest, found.median, found.longest) == (min(lengths), np.median(lengths), max(lengths))
    assert found.bytes_per_token == found.manifest.bytes / sum(lengths)
    assert [(one.source, one.position, one.tokens, one.text) for one in found.first_documents] == [
        (f"corpus/{path.relative_to(corpus).as_posix()}", 0, length, path.read_bytes().decode())
        for path, length in zip(files[:2], lengths, strict=False)
    ]
    assert sum(count for count, _ in found.histogram) == 60
    for count, tokens in found.histogram:
        assert count == sum(tokens <= length < 2 * tokens for length in lengths)
    assert found.histogram[0][0] > 0
    assert dict(found.sources).items() <= Counter(source for source, *_ in texts(folder)).items()
    assert {document.text for document in found.random_documents} <= {path.read_bytes().decode() for path in files}
    assert inspect(folder, 5, seed=1).random_documents != inspect(folder, 5, seed=2).random_documents
    assert len(inspect(folder, documents=1000).first_documents) == 60
    with pytest.raises(DataError, match=MANIFEST):
        inspect(corpus)


def test_neither_preparing_nor_its_workers_import_torch() -> None:
    modules = "bigtrain.prepare.prepare, bigtrain.data.inspect, bigtrain.data.samples"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
