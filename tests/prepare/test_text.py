"""The sample of text that tokenizers are trained on."""

import json
from pathlib import Path

import pytest

from bigtrain.data.held_out import is_held_out
from bigtrain.errors import DataError
from bigtrain.prepare.inputs import find_files
from bigtrain.prepare.plan import cut_finely
from bigtrain.prepare.reading import Errand, Reject, Text, errands, read
from bigtrain.prepare.text import read_documents


def size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def test_without_a_cap_every_document_is_read(corpus: Path) -> None:
    assert sorted(read_documents([corpus])) == sorted(path.read_bytes().decode() for path in corpus.rglob("*.py"))


def test_a_sample_is_exact_the_same_each_time_and_from_all_over(corpus: Path) -> None:
    everything = list(read_documents([corpus]))
    sample = list(read_documents([corpus], max_bytes=9_000))
    assert size(sample) == 9_000
    assert sample == list(read_documents([corpus], max_bytes=9_000))
    assert all(text in everything for text in sample[:-1])
    assert any(text.startswith(sample[-1]) for text in everything)
    places = [everything.index(text) for text in sample[:-1]]
    assert places != sorted(places)
    assert size(list(read_documents([corpus], max_bytes=10**9))) == size(everything)


def test_a_sample_takes_from_every_large_file_by_its_size(tmp_path: Path) -> None:
    for name, documents in (("one", 3_000), ("two", 3_000), ("three", 12_000)):
        lines = [json.dumps({"text": f"{name} {number:05} " + "x" * 980}) for number in range(documents)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sample = list(read_documents([tmp_path], max_bytes=2_000_000))
    assert size(sample) == 2_000_000
    assert len(set(sample)) == len(sample)
    shares = {name: sum(text.startswith(name) for text in sample) / len(sample) for name in ("one", "two", "three")}
    assert shares == pytest.approx({"one": 1 / 6, "two": 1 / 6, "three": 4 / 6}, abs=0.06)


def test_what_a_stretch_lacks_the_others_give(tmp_path: Path) -> None:
    """Lines that are rejected count in the size of their file, and leave room that the other's documents fill."""
    (tmp_path / "bad.jsonl").write_text("no JSON\n" * 200_000)
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": f"{n:09}" * 100}) + "\n" for n in range(2_000)))
    sample = list(read_documents([tmp_path], max_bytes=1_600_000))
    assert size(sample) == 1_600_000
    assert len(set(sample)) == len(sample)


def test_a_cap_never_cuts_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 10, encoding="utf-8")
    assert list(read_documents([tmp_path], max_bytes=7)) == ["ééé"]


def test_held_out_documents_are_kept_from_the_tokenizer(corpus: Path) -> None:
    everything, seen = list(read_documents([corpus])), list(read_documents([corpus], held_out_fraction=0.4))
    assert seen == [text for text in everything if not is_held_out(text, 0.4)]
    assert 0 < len(seen) < len(everything)
    assert not any(is_held_out(text, 0.0) for text in everything)


def test_the_share_held_out_is_the_fraction() -> None:
    for fraction in (0.01, 0.2, 0.5):
        share = sum(is_held_out(f"text {number}", fraction) for number in range(20_000)) / 20_000
        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 20_000) ** 0.5


LIMIT = 2_000_000


def pieces(path: Path) -> list[Errand]:
    return [errand for unit in cut_finely(find_files([path]), "text") for errand in errands((unit,), "text", LIMIT)]


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_pieces_of_a_jsonl_file_are_whole_lines_and_all_of_them(ending: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"{number} " + "x" * (number % 977)}).encode() for number in range(6_000)]
    lines[3_000] = json.dumps({"text": "y" * 1_500_000}).encode()  # longer than a piece
    path.write_bytes(b"\n".join(lines) + ending)
    assert len(pieces(path)) >= 4
    found = [document for piece in pieces(path) for document in read(piece, "text", LIMIT)]
    assert [document.text for document in found if isinstance(document, Text)] == [
        json.loads(line)["text"] for line in lines
    ]


def test_lines_end_with_a_line_feed_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "a\u2028b\x85c"}\r\n{"text": "d"}\r\n'.encode())
    assert list(read_documents([tmp_path])) == ["a\u2028b\x85c", "d"]


def test_a_byte_order_mark_does_not_spoil_a_jsonl_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert list(read_documents([tmp_path])) == ["a"]


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        list(read_documents([tmp_path / "nowhere"]))
    with pytest.raises(DataError, match="no file matches"):
        list(read_documents([tmp_path], max_bytes=5))


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (piece,) = pieces(tmp_path)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(No such file"):
        list(read(piece, "text", LIMIT))


def test_a_line_beyond_the_limit_is_rejected_and_its_neighbours_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = json.dumps({"text": "z" * (3 * LIMIT)}).encode()
    path.write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n')
    found = [document for piece in pieces(path) for document in read(piece, "text", LIMIT)]
    assert [document.text for document in found if isinstance(document, Text)] == ["a", "b"]
    (reject,) = [document for document in found if isinstance(document, Reject)]
    assert reject.reason == "larger than 2 megabytes"
