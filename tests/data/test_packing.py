"""Best-fit packing and padding: which tokens are where, against documents that pyarrow reads."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.batch import count_targets, micro_batches
from bigtrain.data.loader import CausalText
from bigtrain.data.packing import BINS, BestFit, Padded, best_fit
from bigtrain.data.samples import Samples
from bigtrain.data.shards import TokenDataset, open_dataset
from bigtrain.data.tokenizer import SentencePieceTokenizer
from bigtrain.data.writing import Documents, write_dataset

EOS = 2
Make = Callable[[list[int]], TokenDataset]


@pytest.fixture(scope="module")
def make(bpe: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A dataset of documents of these lengths, in shards of 300 tokens; no two of the first 60,000 tokens are equal."""

    def dataset(lengths: list[int]) -> TokenDataset:
        tokens = np.arange(3, 3 + sum(lengths)) % 60_000 + 3
        tokens[np.cumsum(lengths) - 1] = EOS
        count = len(lengths)
        folder = tmp_path_factory.mktemp("packing") / "dataset"
        parts = [Documents(tokens, np.array(lengths), ["file"] * count, list(range(count)), bytes=1)]
        write_dataset(folder, parts, bpe, tokens_per_shard=300)
        return open_dataset(folder)

    return dataset


def documents(dataset: TokenDataset) -> list[list[int]]:
    """Read by pyarrow alone."""
    rows = []
    for path in sorted(dataset.path.glob("*.arrow")):
        with pa.OSFile(str(path)) as file:
            rows += pa.ipc.open_file(file).read_all()["tokens"].to_pylist()
    return rows


@settings(max_examples=200)
@given(data=st.data(), bins=st.integers(1, 40), capacity=st.integers(1, 50))
def test_pieces_fill_the_bins_and_are_the_documents(data: st.DataObject, bins: int, capacity: int) -> None:
    total = bins * capacity
    borders = data.draw(st.sets(st.integers(1, total - 1), max_size=60)) if total > 1 else set()
    begins = [0, *sorted(borders)]
    lengths = np.diff([*begins, total]).tolist()
    packed = best_fit(zip(begins, lengths, strict=True), bins, capacity)
    assert [sum(length for _, length in pieces) for pieces in packed] == [capacity] * bins
    pieces = sorted(piece for bin_pieces in packed for piece in bin_pieces)
    assert pieces[0][0] == 0
    assert all(begin + length == following for (begin, length), (following, _) in pairwise(pieces))
    assert set(begins) <= {begin for begin, _ in pieces}, "every document's begin begins a piece"


def test_every_token_is_in_one_sample_and_few_documents_are_cut(make: Make) -> None:
    generator = np.random.default_rng(0)
    dataset = make(np.minimum(generator.geometric(1 / 40, 1500) + 1, 400).tolist())
    cut = BestFit(dataset, 63)
    stream = np.concatenate(documents(dataset))
    rows = cut.read(range(len(cut)), with_begins=True)
    assert rows.begins is not None
    starts = np.zeros(rows.tokens.shape, dtype=bool)
    for row, begins in zip(starts, rows.begins, strict=True):
        row[begins] = True
    assert starts[:, 0].all()
    places = np.concatenate([np.arange(b, b + n) for number in range(len(cut)) for b, n in cut.extent(number)])
    np.testing.assert_array_equal(rows.tokens.ravel(), stream[places])
    assert len(np.unique(places)) == len(places) == len(stream) - cut.tokens_left_out()
    assert cut.tokens_left_out() < 64
    borders = np.flatnonzero(starts.ravel())
    assert set(np.cumsum([0, *map(len, documents(dataset))])[:-1].tolist()) - set(places[borders].tolist()) <= set(
        range(places.max() + 1, len(stream))
    ), "every document's begin is marked"
    windows = len(set(range(64, len(stream), 64)) - set(np.cumsum([*map(len, documents(dataset))]).tolist()))
    pieces = sum(len(cut.extent(number)) for number in range(len(cut)))
    needed = sum(-(-len(document) // 64) for document in documents(dataset))
    assert pieces - needed < windows / 10, "a tenth of what cutting the stream costs"


def test_a_stretch_is_packed_alone(make: Make) -> None:
    """So that any sample is found without looking at those before."""
    dataset = make([50] * 1000)
    cut = BestFit(dataset, 9)
    for number in (0, BINS - 1, BINS, 3 * BINS + 7, len(cut) - 1):
        stretch = number // BINS
        assert all(stretch * BINS * 10 <= begin < (stretch + 1) * BINS * 10 for begin, _ in cut.extent(number))
        assert BestFit(dataset, 9).extent(number) == cut.extent(number)


def test_a_part_of_a_document_sees_itself_alone_and_its_first_token_is_no_target(make: Make) -> None:
    samples = Samples(make([7, 4, 20, 11, 6, 2, 9, 33] * 20), 15, seed=3, packing="best_fit")
    for batch in micro_batches(CausalText(samples, "best_fit"), 0, global_batch_size=40, micro_batch_size=20):
        assert batch.documents is not None
        for lengths, positions, mask in zip(batch.documents, batch.position_ids, batch.loss_mask, strict=True):
            assert positions.tolist() == [place for length in lengths for place in range(length)]
            firsts = np.cumsum(lengths)[:-1] - 1  # the label there is the next document's first token
            assert (np.flatnonzero(mask.numpy() == 0)[: len(firsts)] == firsts).all()
            assert len(lengths) - 1 <= int((mask == 0).sum()) <= len(lengths)


def test_padding_is_no_target(make: Make) -> None:
    lengths = [5, 9, 1, 30, 10]
    dataset = make(lengths)
    samples = Samples(dataset, 9, shuffle=False, packing="padded")
    assert len(samples) == 5
    assert samples.cut.tokens_left_out() == 20
    (batch,) = micro_batches(CausalText(samples, "padded"), 0, global_batch_size=5, micro_batch_size=5)
    for row, mask, labels, document in zip(
        batch.input_ids, batch.loss_mask, batch.labels, documents(dataset), strict=True
    ):
        kept = document[:10]
        assert row[: len(kept)].tolist() == kept[:9]
        assert labels[: len(kept) - 1].tolist() == kept[1:]
        assert mask.tolist() == [1.0] * (len(kept) - 1) + [0.0] * (10 - len(kept))
    assert count_targets([batch]) == sum(min(n, 10) - 1 for n in lengths)
    assert Padded(dataset, 9).extent(3) == [(15, 10)]


@pytest.mark.parametrize("packing", ["contiguous", "best_fit", "padded"])
def test_an_epoch_has_every_sample_once_also_in_windows(make: Make, packing: str) -> None:
    dataset = make([5, 30, 11] * 50)
    samples = Samples(dataset, 7, seed=1, window=100, packing=packing)
    for epoch in range(2):
        ids = samples.sample_ids(np.arange(len(samples)) + epoch * len(samples))
        np.testing.assert_array_equal(np.sort(ids), np.arange(len(samples)))


def test_files_are_named_in_the_error(make: Make, tmp_path: Path) -> None:
    dataset = make([40] * 30)
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in dataset.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    size = (folder / "shard-00002.arrow").stat().st_size
    (folder / "shard-00002.arrow").write_bytes(b"\0" * size)
    with pytest.raises(Exception, match=r"shard-00002\.arrow: damaged shard"):
        BestFit(open_dataset(folder), 9).read([0])
