"""The same documents in every format give the same texts; damaged files are told, and what is sound of them is kept."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from bigtrain.data.shards import open_dataset
from bigtrain.prepare.prepare import prepare

Texts = list[tuple[str, int, str]]


@pytest.fixture(scope="module")
def documents(sources: list[str]) -> list[str]:
    """700 texts, about 2 megabytes: more than a piece."""
    found = []
    for number in range(700):
        text = sources[number % len(sources)]
        begin = number * 13 % (len(text) // 2)
        found.append(f"{number} é漢\n" + text[begin : begin + 3000])
    return found


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(documents)).encode()


def write_plain(path: Path, documents: list[str]) -> None:
    (path / "a.jsonl").write_bytes(lines(documents))


def write_gzip(path: Path, documents: list[str]) -> None:
    half = len(documents) // 2
    members = [gzip.compress(lines(part)) for part in (documents[:half], documents[half:])]  # as `cat` joins them
    (path / "a.jsonl.gz").write_bytes(b"".join(members))


def write_zstd(path: Path, documents: list[str]) -> None:
    half = len(documents) // 2
    frames = [zstandard.compress(lines(part)) for part in (documents[:half], documents[half:])]
    (path / "a.jsonl.zst").write_bytes(b"".join(frames))


def table(documents: list[str]) -> pa.Table:
    return pa.table({"id": list(range(len(documents))), "text": documents, "nested": [{"text": "no"}] * len(documents)})


def write_parquet(path: Path, documents: list[str]) -> None:
    pa.parquet.write_table(table(documents), path / "a.parquet", row_group_size=150)


def write_arrow_file(path: Path, documents: list[str]) -> None:
    with pa.ipc.new_file(str(path / "a.arrow"), table(documents).schema) as file:
        file.write_table(table(documents), max_chunksize=99)


def write_saved(path: Path, documents: list[str]) -> None:
    datasets.Dataset.from_dict({"text": documents}).save_to_disk(str(path), num_shards=3)


def write_hub(path: Path, documents: list[str]) -> None:
    """A copy of a repository on the hub: a card, and Parquet below."""
    (path / "README.md").write_text("---\nlicense: mit\n---\nnot a document")
    (path / "data").mkdir()
    pa.parquet.write_table(table(documents), path / "data" / "train-00000-of-00001.parquet")


WRITERS = [write_plain, write_gzip, write_zstd, write_parquet, write_arrow_file, write_saved, write_hub]


def texts(folder: Path) -> Texts:
    dataset = open_dataset(folder)
    tokenizer = dataset.load_tokenizer()
    found = []
    for number in range(dataset.documents):
        tokens, source, position = dataset.document(number)
        found.append((source, position, tokenizer.decode(tokens[:-1].tolist())))
    return found


@pytest.mark.parametrize("write", WRITERS, ids=[write.__name__[6:] for write in WRITERS])
def test_every_format_gives_every_document(
    write: Callable[[Path, list[str]], None], documents: list[str], bpe_path: Path, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    write(root, documents)
    made = prepare([root], tmp_path / "output", bpe_path, workers=1)
    assert made.rejected == 0
    found = texts(tmp_path / "output" / "train")
    assert [text for *_, text in found] == documents
    if write is not write_saved:
        assert [position for _, position, _ in found] == list(range(len(documents)))


def bigtrain(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bigtrain", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("cut.jsonl.zst", lambda content: zstandard.compress(content)[:-50_000]),
        ("cut.jsonl.gz", lambda content: gzip.compress(content)[:-50_000]),
        ("flipped.jsonl.gz", lambda content: flip(gzip.compress(content))),
        ("flipped.jsonl.zst", lambda content: flip(zstandard.compress(content))),
    ],
)
def test_of_a_damaged_file_what_is_sound_is_kept_and_the_rest_is_told(
    name: str, spoil: Callable[[bytes], bytes], documents: list[str], bpe_path: Path, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / name).write_bytes(spoil(lines(documents)))
    (root / "sound.txt").write_text("sound")
    done = bigtrain("data", "prepare", root, "--output", tmp_path / "out", "--tokenizer", bpe_path, "--workers", 1)
    assert done.returncode == 0, done.stderr
    found = texts(tmp_path / "out" / "train")
    assert found[-1] == ("in/sound.txt", 0, "sound")
    kept = [text for *_, text in found[:-1]]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert rejects
    assert all(row["source"] == f"in/{name}" for row in rejects)
    assert kept == documents[: len(kept)]
    assert len(kept) <= rejects[0]["position"] <= len(kept) + 1
    assert f"{len(rejects)} left out" in done.stdout
    assert "data damaged or cut" in done.stdout + "".join(row["reason"] for row in rejects)


def flip(content: bytes) -> bytes:
    middle = len(content) * 3 // 4
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 20]) + content[middle + 20 :]


def test_a_damaged_parquet_file_is_told(documents: list[str], bpe_path: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    write_parquet(root, documents)
    content = bytearray((root / "a.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = b"\xff" * 200
    (root / "a.parquet").write_bytes(content)
    (root / "b.parquet").write_bytes(b"PAR1 nothing of the kind")
    made = prepare([root], tmp_path / "output", bpe_path, workers=1)
    kept = {text for *_, text in texts(tmp_path / "output" / "train")}
    assert kept < set(documents)
    assert len(kept) >= 300
    rejects = [json.loads(line) for line in (tmp_path / "output" / "rejects.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rejects} == {"in/a.parquet", "in/b.parquet"}
    assert made.rejected == len(rejects)


def test_a_file_without_the_column_is_a_mistake(documents: list[str], bpe_path: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path, documents[:10])
    words = ("data", "prepare", tmp_path / "a.parquet", "--output", tmp_path / "out", "--tokenizer", bpe_path)
    done = bigtrain(*words, "--text-key", "content")
    assert done.returncode == 2
    assert "a.parquet: no column 'content', only id, text, nested" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]


def test_a_huge_line_is_left_out_without_being_held(bpe_path: Path, tmp_path: Path) -> None:
    """200 megabytes in one line; the process may use 400 beside what it has after its imports."""
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(200):
            file.write(b"x" * 10**6)
        file.write(b'"}\n{"text": "after"}\n')
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from bigtrain.prepare.prepare import prepare\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1000\n"
        "before = peak()\n"
        "made = prepare([sys.argv[1]], sys.argv[2], sys.argv[3], workers=1)\n"
        "print(peak() - before, made.train.documents, dict(made.reasons))\n"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "out"), str(bpe_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    megabytes, documents, reasons = done.stdout.split(maxsplit=2)
    assert documents == "2"
    assert "larger than 64 megabytes" in reasons
    assert int(megabytes) < 250
