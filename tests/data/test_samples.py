"""Windows by position, against plain concatenation of what pyarrow reads."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.data.samples import Samples
from bigtrain.data.shards import TokenDataset, open_dataset
from bigtrain.data.tokenizer import SentencePieceTokenizer
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.errors import DataError

TOKENS = 5 * 700 + 3


@pytest.fixture(scope="module")
def dataset(bpe: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Documents of 1 to 40 tokens in shards of 500, the last id of each 2."""
    generator = np.random.default_rng(0)
    lengths = []
    while sum(lengths) < TOKENS:
        lengths.append(min(int(generator.integers(1, 41)), TOKENS - sum(lengths)))
    tokens = generator.integers(3, 700, TOKENS)
    tokens[np.cumsum(lengths) - 1] = 2
    count = len(lengths)
    parts = [Documents(tokens, np.array(lengths), ["file"] * count, list(range(count)), bytes=TOKENS)]
    folder = tmp_path_factory.mktemp("samples") / "dataset"
    write_dataset(folder, parts, bpe, tokens_per_shard=500)
    return open_dataset(folder)


@pytest.fixture(scope="module")
def documents(dataset: TokenDataset) -> list[list[int]]:
    """Read by pyarrow alone."""
    rows = []
    for path in sorted(dataset.path.glob("*.arrow")):
        with pa.OSFile(str(path)) as file:
            rows += pa.ipc.open_file(file).read_all()["tokens"].to_pylist()
    return rows


@pytest.mark.parametrize("length", [1, 7, 64, 499, TOKENS - 1])
def test_windows_tile_the_stream(dataset: TokenDataset, documents: list[list[int]], length: int) -> None:
    stream = np.concatenate(documents)
    begins = np.concatenate([[True] + [False] * (len(document) - 1) for document in documents])
    samples = Samples(dataset, length, shuffle=False)
    assert len(samples) == (TOKENS - 1) // length
    rows = samples.read(range(len(samples)), with_begins=True)
    assert rows.begins is not None
    tokens = rows.tokens
    starts = np.zeros(tokens.shape, dtype=bool)
    for row, places in zip(starts, rows.begins, strict=True):
        row[places] = True
    assert (tokens.dtype, tokens.shape) == (np.uint16, (len(samples), length + 1))
    assert (starts.dtype, starts.shape) == (np.bool_, tokens.shape)
    for number in range(len(samples)):
        np.testing.assert_array_equal(tokens[number], stream[number * length : (number + 1) * length + 1])
        np.testing.assert_array_equal(starts[number], begins[number * length : (number + 1) * length + 1])
    np.testing.assert_array_equal(tokens[:, 1:].ravel(), stream[1 : len(samples) * length + 1])  # each target once


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(length=st.integers(1, 3502), seed=st.integers(0, 2**64), epoch=st.integers(0, 10**6))
def test_every_sample_comes_exactly_once_an_epoch(dataset: TokenDataset, length: int, seed: int, epoch: int) -> None:
    samples = Samples(dataset, length, seed)
    positions = epoch * len(samples) + np.arange(len(samples))
    np.testing.assert_array_equal(np.sort(samples.sample_ids(positions)), np.arange(len(samples)))


@settings(deadline=None)
@given(seed=st.integers(0, 100), positions=st.lists(st.integers(0, 30_000), min_size=1, max_size=20))
def test_what_a_position_reads_depends_on_nothing_else(dataset: TokenDataset, seed: int, positions: list[int]) -> None:
    samples = Samples(dataset, 3, seed)  # 1,167 an epoch, so that positions lie in several
    together = samples.read(positions).tokens
    for number in np.random.default_rng(seed).permutation(len(positions)).tolist():
        fresh = Samples(dataset, 3, seed)
        np.testing.assert_array_equal(fresh.read([positions[number]]).tokens[0], together[number])


def test_orders_longer_than_a_block_are_whole(dataset: TokenDataset) -> None:
    """The stream has fewer than 4,096 positions; this epoch has more, and a last block of one."""
    samples = Samples(dataset, 1)
    samples._size = 3 * 4096 + 1
    ids = samples.sample_ids(np.arange(2 * samples._size).reshape(2, -1))
    for epoch in ids:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(samples._size))
    assert (ids[0] != ids[1]).any()


def test_epochs_and_seeds_differ(dataset: TokenDataset) -> None:
    size = len(Samples(dataset, 10))
    first = Samples(dataset, 10, seed=0).sample_ids(np.arange(2 * size)).reshape(2, size)
    other = Samples(dataset, 10, seed=1).sample_ids(np.arange(size))
    assert (first[0] != first[1]).mean() > 0.9
    assert (first[0] != other).mean() > 0.9
    assert (first[0] != np.arange(size)).mean() > 0.9


def test_unshuffled_epochs_repeat_the_stream(dataset: TokenDataset) -> None:
    samples = Samples(dataset, 100, shuffle=False)
    assert samples.sample_ids([0, 34, 35, 70]).tolist() == [0, 34, 0, 0]


def test_a_dataset_shorter_than_a_sample_is_refused(dataset: TokenDataset) -> None:
    assert len(Samples(dataset, TOKENS - 1)) == 1
    with pytest.raises(
        DataError, match=rf"its {TOKENS} tokens do not fill .*sequence_length {TOKENS} .* {TOKENS + 1}$"
    ):
        Samples(dataset, TOKENS)


def test_an_empty_dataset_is_refused(bpe: SentencePieceTokenizer, tmp_path: Path) -> None:
    write_dataset(tmp_path / "empty", [], bpe)
    with pytest.raises(DataError, match="its 0 tokens do not fill"):
        Samples(open_dataset(tmp_path / "empty"), 1)
