"""Datasets on disk, read back with plain pyarrow and compared with plain concatenation."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.data.manifest import Manifest
from bigtrain.data.shards import TokenDataset, check_tokenizer, open_dataset
from bigtrain.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer
from bigtrain.data.verify import verify
from bigtrain.data.writing import Documents, ShardWriter, new_folder, write_dataset
from bigtrain.errors import DataError

EOS = 2
COUNT = 40


def documents(lengths: list[int], largest: int = 699) -> list[np.ndarray]:
    """Random documents of those lengths, each ended by EOS."""
    generator = np.random.default_rng(0)
    return [np.append(generator.integers(3, largest + 1, length - 1), EOS) for length in lengths]


def groups(arrays: list[np.ndarray], size: int) -> Iterator[Documents]:
    """As a preparation hands them over, `size` at a time."""
    for first in range(0, len(arrays), size):
        part = arrays[first : first + size]
        numbers = range(first, first + len(part))
        yield Documents(
            np.concatenate(part),
            np.array([len(array) for array in part]),
            [f"folder/file{number // 3}" for number in numbers],
            [number % 3 for number in numbers],
            bytes=10 * len(part),
        )


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    return documents(np.random.default_rng(1).integers(1, 60, COUNT).tolist())


@pytest.fixture
def folder(arrays: list[np.ndarray], bpe: SentencePieceTokenizer, tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset", groups(arrays, 7), bpe, tokens_per_shard=200)
    return tmp_path / "dataset"


def edit_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | changes))


def edit_manifest_size(folder: Path, number: int, size: int) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    content["shards"][number]["size_bytes"] = size
    (folder / "dataset.json").write_text(json.dumps(content))


def overwrite(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def test_plain_pyarrow_reads_every_document_and_where_it_came_from(folder: Path, arrays: list[np.ndarray]) -> None:
    rows = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        assert table.schema.field("tokens").type == pa.large_list(pa.uint16())
        rows += table.to_pylist()
    assert [row["tokens"] for row in rows] == [array.tolist() for array in arrays]
    assert [(row["source"], row["position"]) for row in rows] == [(f"folder/file{i // 3}", i % 3) for i in range(COUNT)]


def test_the_manifest_describes_the_files(folder: Path, arrays: list[np.ndarray], bpe: SentencePieceTokenizer) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    shards = content.pop("shards")
    assert content == {
        "format_version": 1,
        "tokenizer": {"file": "tokenizer.model", "fingerprint": bpe.fingerprint, "vocab_size": 700, "eos_id": EOS},
        "provenance": {},
        "dtype": "uint16",
        "tokens": sum(map(len, arrays)),
        "documents": COUNT,
        "bytes": 10 * COUNT,
    }
    assert len(shards) > 3
    assert [shard["file"] for shard in shards] == [f"shard-{number:05d}.arrow" for number in range(len(shards))]
    assert {path.name for path in folder.iterdir()} == {
        "dataset.json",
        "tokenizer.model",
        *(shard["file"] for shard in shards),
    }
    for shard in shards:
        path = folder / shard["file"]
        assert shard["size_bytes"] == path.stat().st_size
        assert shard["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert shard["tokens"] <= 200
    assert sum(shard["documents"] for shard in shards) == COUNT


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    tokens_per_shard=st.integers(1, 120),
    group=st.integers(1, 30),
    data=st.data(),
)
def test_the_stream_is_the_concatenation_of_the_documents(
    lengths: list[int],
    tokens_per_shard: int,
    group: int,
    data: st.DataObject,
    bpe: SentencePieceTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    arrays = documents(lengths)
    stream = np.concatenate(arrays)
    begins = np.zeros(len(stream), dtype=bool)
    begins[np.cumsum([0, *lengths[:-1]])] = True
    folder = tmp_path_factory.mktemp("stream") / "dataset"
    manifest = write_dataset(folder, groups(arrays, group), bpe, tokens_per_shard)
    assert all(shard.tokens <= tokens_per_shard or shard.documents == 1 for shard in manifest.shards)

    dataset = open_dataset(folder)
    assert (dataset.tokens, dataset.documents, dataset.dtype) == (len(stream), len(arrays), np.uint16)
    assert dataset.document_lengths().tolist() == lengths
    for _ in range(10):
        start = data.draw(st.integers(0, len(stream)))
        length = data.draw(st.integers(0, len(stream) - start))
        window = dataset.read(start, length)
        assert window.dtype == np.uint16
        np.testing.assert_array_equal(window, stream[start : start + length])
        np.testing.assert_array_equal(dataset.document_starts(start, length), begins[start : start + length])
    for number, token in enumerate(np.flatnonzero(begins).tolist()):
        assert dataset.document_at(token) == dataset.document_at(token + lengths[number] - 1) == number
        document = dataset.document(number)
        np.testing.assert_array_equal(document.tokens, arrays[number])
        assert (document.source, document.position) == (f"folder/file{number // 3}", number % 3)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize(
    ("lengths", "tokens_per_shard", "expected"),
    [
        ([10, 10, 10], 25, [20, 10]),
        ([10, 10, 10], 20, [20, 10]),
        ([10, 10, 10], 19, [10, 10, 10]),
        ([10, 50, 10], 20, [10, 50, 10]),
        ([50, 10, 10], 20, [50, 20]),
    ],
)
def test_a_shard_ends_before_the_document_that_does_not_fit(
    lengths: list[int],
    tokens_per_shard: int,
    expected: list[int],
    group: int,
    bpe: SentencePieceTokenizer,
    tmp_path: Path,
) -> None:
    manifest = write_dataset(tmp_path / "dataset", groups(documents(lengths), group), bpe, tokens_per_shard)
    assert [shard.tokens for shard in manifest.shards] == expected


def test_shards_do_not_depend_on_how_documents_were_grouped(
    folder: Path, arrays: list[np.ndarray], bpe: SentencePieceTokenizer
) -> None:
    other = write_dataset(folder.with_name("other"), groups(arrays, COUNT), bpe, tokens_per_shard=200)
    assert other == open_dataset(folder).manifest


def test_a_window_within_a_shard_is_no_copy(folder: Path) -> None:
    dataset = open_dataset(folder)
    first, second = dataset.read(0, 50), dataset.read(10, 50)
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


def test_ids_beyond_16_bits_are_kept(tmp_path: Path) -> None:
    words = {"</s>": 0} | {f"word{number}": number for number in range(1, 70_000)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path / "tokenizer.json")
    tokens = np.array([69_999, 65_536, 1, 0])
    parts = [Documents(tokens, np.array([4]), ["file"], [0], bytes=3)]
    manifest = write_dataset(tmp_path / "dataset", parts, tokenizer)
    dataset = open_dataset(tmp_path / "dataset")
    assert (manifest.dtype, dataset.dtype) == ("uint32", np.uint32)
    assert dataset.read(0, 4).tolist() == tokens.tolist()


def test_reaching_beyond_the_stream_is_an_error(folder: Path) -> None:
    dataset = open_dataset(folder)
    for start, length in ((-1, 2), (0, dataset.tokens + 1), (dataset.tokens, 1), (5, -1)):
        with pytest.raises(IndexError, match=f"of {dataset.tokens} in"):
            dataset.read(start, length)
    for index in (-1, COUNT):
        with pytest.raises(IndexError, match=f"document {index} of {COUNT}"):
            dataset.document(index)
    for token in (-1, dataset.tokens):
        with pytest.raises(IndexError, match=f"token {token} of"):
            dataset.document_at(token)


def test_the_maps_of_many_shards_are_not_all_kept(bpe: SentencePieceTokenizer, tmp_path: Path) -> None:
    arrays = documents([5] * 400)
    write_dataset(tmp_path / "dataset", groups(arrays, 400), bpe, tokens_per_shard=5)
    dataset = open_dataset(tmp_path / "dataset")
    windows = [dataset.read(start, 5).copy() for start in range(0, 2000, 5)]
    np.testing.assert_array_equal(np.concatenate(windows), np.concatenate(arrays))
    maps = Path("/proc/self/maps").read_text()
    assert 0 < maps.count(str(tmp_path)) < 300


def test_the_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "output"
    partial = tmp_path / "output.partial"
    partial.mkdir()
    (partial / "left by a killed run").touch()
    with pytest.raises(ZeroDivisionError), new_folder(output) as folder:
        (folder / f"{1 // len(list(folder.iterdir()))}").touch()
    assert list(tmp_path.iterdir()) == []
    with new_folder(output) as folder:
        (folder / "file").touch()
        assert not output.exists()
    assert [path.name for path in output.iterdir()] == ["file"]
    with pytest.raises(DataError, match="output: exists already"), new_folder(output):
        raise AssertionError("never entered")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_an_output_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/output: cannot be written"), new_folder(tmp_path / "file" / "output"):
        raise AssertionError("never entered")


def test_shards_without_a_manifest_are_no_dataset(
    arrays: list[np.ndarray], bpe: SentencePieceTokenizer, tmp_path: Path
) -> None:
    writer = ShardWriter(tmp_path, bpe, tokens_per_shard=200)
    for group in groups(arrays, 7):
        writer.add(group)
    assert (tmp_path / "shard-00000.arrow").is_file()
    with pytest.raises(DataError, match=r"no dataset there, dataset\.json cannot be read"):
        open_dataset(tmp_path)
    assert isinstance(writer.close(), Manifest)
    assert open_dataset(tmp_path).documents == COUNT


def test_a_folder_of_datasets_gets_a_hint(folder: Path) -> None:
    with pytest.raises(DataError, match=f"did you mean {folder}\\?"):
        open_dataset(folder.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format_version is 99; this BigTrain reads 1"),
        ({"tokens": "many"}, "tokens: Input should be a valid integer"),
        ({"dtype": "int8"}, "dtype: Input should be 'uint16' or 'uint32'"),
        ({"shards": [{}]}, r"shards\.0\.file: Field required"),
        ({"documents": 1}, "documents is not the sum over its shards"),
        ({"shards": None}, "shards: Input should be"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(folder, **changes)
    with pytest.raises(DataError, match=rf"dataset\.json: {message}"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", "many", "tokens: Input should be a valid integer"),
        ("tokens", -5, "tokens: Input should be greater than or equal to 0"),
        ("documents", 0.5, "documents: Input should be a valid integer"),
        ("size_bytes", 2**70, ": two have the same name, or a number is beyond 64 bits"),
        ("sha256", "../../../home", "sha256: String should match pattern"),
        ("file", "../shard", "file: String should match pattern"),
        ("file", "shard-00000.arrow", ": two have the same name, or a number is beyond 64 bits"),
    ],
)
def test_the_entry_that_makes_no_sense_is_named(folder: Path, key: str, value: object, message: str) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    content["shards"][2][key] = value
    (folder / "dataset.json").write_text(json.dumps(content))
    where = r"shards" if message.startswith(":") else r"shards\.2\."
    with pytest.raises(DataError, match=rf"dataset\.json: {where}{message}"):
        open_dataset(folder)


def test_the_records_are_those_of_the_file(folder: Path) -> None:
    entries = json.loads((folder / "dataset.json").read_text())["shards"]
    shards = open_dataset(folder).manifest.shards
    assert [vars(shard) for shard in shards] == entries
    assert vars(shards[-1]) == entries[-1]
    assert [vars(shard) for shard in shards[1:3]] == entries[1:3]
    assert len(shards) == len(entries)


def test_the_shards_of_a_window(folder: Path) -> None:
    dataset = open_dataset(folder)
    ends = np.cumsum([shard.tokens for shard in dataset.manifest.shards]).tolist()
    assert dataset.shards_of(0, 1) == dataset.shards_of(0, ends[0]) == range(1)
    assert dataset.shards_of(ends[0], 1) == range(1, 2)
    assert dataset.shards_of(ends[0] - 1, 2) == range(2)
    assert dataset.shards_of(0, dataset.tokens) == range(len(ends))
    assert list(dataset.shards_of(5, 0)) == []
    with pytest.raises(IndexError):
        dataset.shards_of(0, dataset.tokens + 1)


@pytest.mark.parametrize(
    ("content", "message"), [("{", r"dataset\.json: not JSON"), ("[]", r"dataset\.json: format_version is None")]
)
def test_a_manifest_that_is_no_object_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


def test_a_missing_shard_is_found_at_the_start(folder: Path) -> None:
    (folder / "shard-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.arrow: shard cannot be read \(No such file"):
        open_dataset(folder)


def test_a_shard_cut_short_is_found_at_the_start(folder: Path) -> None:
    path = folder / "shard-00001.arrow"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"shard-00001\.arrow: has \d+ bytes, dataset\.json says \d+"):
        open_dataset(folder)


def test_a_shard_whose_frame_is_damaged_is_named_when_it_is_opened(folder: Path) -> None:
    path = folder / "shard-00001.arrow"
    overwrite(path, path.stat().st_size - 20, b"\xff" * 16)
    dataset = open_dataset(folder)
    dataset.read(0, 10)  # the others are well
    with pytest.raises(DataError, match=r"shard-00001\.arrow: damaged shard"):
        dataset.read(0, dataset.tokens)


def test_damaged_document_borders_are_found_when_they_are_used(folder: Path, arrays: list[np.ndarray]) -> None:
    dataset = open_dataset(folder)
    path = folder / "shard-00000.arrow"
    border = np.array([0, len(arrays[0]), len(arrays[0]) + len(arrays[1])]).tobytes()
    overwrite(path, path.read_bytes().index(border) + 8, b"\xff" * 8)
    assert dataset.read(0, 5).tolist() == np.concatenate(arrays)[:5].tolist()
    for use in (lambda: dataset.document(0), lambda: dataset.document_at(0), lambda: dataset.document_starts(0, 1)):
        with pytest.raises(DataError, match=r"shard-00000\.arrow: damaged shard \(documents overlap\)"):
            use()


def test_damaged_sources_are_found_when_they_are_used(folder: Path) -> None:
    path = folder / "shard-00000.arrow"
    overwrite(path, path.read_bytes().index(b"folder/file0"), b"\xff")
    with pytest.raises(DataError, match=r"shard-00000\.arrow: damaged shard \(.*UTF8"):
        open_dataset(folder).document(0)


def test_a_shard_of_another_dataset_is_refused(folder: Path) -> None:
    path = folder / "shard-00001.arrow"
    batch = pa.record_batch({"tokens": [[1, 2]], "position": [0]})
    with pa.ipc.new_file(str(path), batch.schema) as file:
        file.write_batch(batch)
    edit_manifest_size(folder, 1, path.stat().st_size)
    with pytest.raises(DataError, match=r"shard-00001\.arrow: not a shard of this dataset; its columns are"):
        open_dataset(folder).read(0, open_dataset(folder).tokens)


def test_shards_that_changed_places_are_refused(folder: Path) -> None:
    first, second = folder / "shard-00000.arrow", folder / "shard-00001.arrow"
    first.write_bytes(second.read_bytes())
    edit_manifest_size(folder, 0, first.stat().st_size)
    with pytest.raises(DataError, match=r"shard-00000\.arrow: holds \d+ tokens of \d+ documents; dataset\.json says"):
        open_dataset(folder).read(0, 1)


def test_verify_finds_a_single_flipped_bit(folder: Path, arrays: list[np.ndarray]) -> None:
    assert verify(folder) == open_dataset(folder).manifest
    path = folder / "shard-00001.arrow"
    content = path.read_bytes()
    first_document = arrays[open_dataset(folder).manifest.shards[0].documents].astype(np.uint16).tobytes()
    position = content.index(first_document)
    overwrite(path, position, bytes([content[position] ^ 1]))
    open_dataset(folder).read(0, open_dataset(folder).tokens)  # nothing to see without the checksums
    with pytest.raises(DataError, match=r"1 of its files.*\n  shard-00001\.arrow: damaged, its checksum differs$"):
        verify(folder)


def test_verify_names_everything_that_is_wrong(folder: Path) -> None:
    """Missing, cut, swapped for another, one too many, and the tokenizer."""
    (folder / "shard-00002.arrow").unlink()
    os.truncate(folder / "shard-00004.arrow", 700)
    (folder / "shard-00000.arrow").write_bytes((folder / "shard-00001.arrow").read_bytes())
    (folder / "shard-00099.arrow").touch()
    (folder / "report.html").touch()  # what is no shard is no fault
    overwrite(folder / "tokenizer.model", 100, b"\x00\x00")
    with pytest.raises(DataError) as caught:
        verify(folder)
    first, *wrong = str(caught.value).splitlines()
    assert first == f"{folder}: 5 of its files are not as they should be"
    assert [line.split()[0] for line in wrong] == [
        "shard-00000.arrow:",
        "shard-00002.arrow:",
        "shard-00004.arrow:",
        "shard-00099.arrow:",
        "tokenizer.model:",
    ]
    for line, word in zip(
        wrong, ("swapped, this is shard-00001.arrow", "missing", "has 700 bytes", "no", "not the tok"), strict=True
    ):
        assert word in line


def test_verify_lets_equal_shards_pass(bpe: SentencePieceTokenizer, tmp_path: Path) -> None:
    part = Documents(np.array([5, 6, EOS]), np.array([3]), ["file"], [0], bytes=3)
    write_dataset(tmp_path / "dataset", [part, part], bpe, tokens_per_shard=3)
    shards = verify(tmp_path / "dataset").shards
    assert len(shards) == 2
    assert shards[0].sha256 == shards[1].sha256


def test_verify_looks_at_what_a_shard_says(folder: Path) -> None:
    """Files that are as they were written, by a program that was wrong."""
    path = folder / "shard-00001.arrow"
    with pa.OSFile(str(path)) as file:
        rows = pa.ipc.open_file(file).read_all()
    lists = rows.column("tokens").to_pylist()
    for change, told in (
        ((0, -1, 5), "a document does not end with the id 2"),
        ((0, 0, 700), "has the id 700, the vocabulary ends at 700"),
    ):
        changed = [list(tokens) for tokens in lists]
        changed[change[0]][change[1]] = change[2]
        columns = [
            pa.array(changed, rows.schema.field("tokens").type),
            *(rows.column(n).combine_chunks() for n in (1, 2)),
        ]
        batch = pa.record_batch(columns, schema=rows.schema)
        with pa.ipc.new_file(str(path), batch.schema) as file:
            file.write_batch(batch)
        content = json.loads((folder / "dataset.json").read_text())
        content["shards"][1]["size_bytes"] = path.stat().st_size
        content["shards"][1]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"shard-00001\.arrow: as written, but wrong: {told}$"):
            verify(folder)


def test_the_tokenizer_must_be_the_one_that_made_the_data(
    folder: Path, bpe: SentencePieceTokenizer, byte_level: HuggingFaceTokenizer
) -> None:
    dataset = open_dataset(folder)
    assert dataset.load_tokenizer().fingerprint == bpe.fingerprint
    check_tokenizer(dataset, bpe)
    with pytest.raises(DataError, match=r"tokenizer\.json: not the tokenizer that made .*dataset; use the copy"):
        check_tokenizer(dataset, byte_level)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.model: the tokenizer cannot be read"):
        dataset.load_tokenizer()


def test_an_empty_dataset_can_be_written_and_opened(bpe: SentencePieceTokenizer, tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", [], bpe)
    dataset = open_dataset(tmp_path / "dataset")
    assert (dataset.tokens, dataset.documents, len(dataset.read(0, 0))) == (0, 0, 0)
    assert isinstance(dataset, TokenDataset)
