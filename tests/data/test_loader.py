"""A step's batches: the same samples for any number of ranks, and what is in each tensor."""

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.batch import count_targets, micro_batches
from bigtrain.data.loader import CausalBatch, CausalText, prefetch
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
from bigtrain.data.tokenizer import SentencePieceTokenizer
from bigtrain.data.writing import Documents, write_dataset

LENGTH = 8


@pytest.fixture(scope="module")
def samples(bpe: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """100 documents of 13 tokens, ids that tell where in the document they stand."""
    tokens = np.tile([*range(10, 22), 2], 100)
    parts = [Documents(tokens, np.full(100, 13), ["file"] * 100, list(range(100)), bytes=1)]
    folder = tmp_path_factory.mktemp("loader") / "dataset"
    write_dataset(folder, parts, bpe, tokens_per_shard=100)
    return Samples(open_dataset(folder), LENGTH, seed=5)


@settings(deadline=None)
@given(
    data_parallel_size=st.integers(1, 16),
    micro_batch_size=st.integers(1, 3),
    rounds=st.integers(1, 3),
    first_position=st.integers(0, 1000),
)
def test_the_ranks_read_a_steps_samples_in_order_and_each_only_its_own(
    samples: Samples, data_parallel_size: int, micro_batch_size: int, rounds: int, first_position: int
) -> None:
    global_batch_size = data_parallel_size * micro_batch_size * rounds
    expected = samples.read(first_position + np.arange(global_batch_size)).tokens
    ranks = [
        micro_batches(
            CausalText(samples),
            first_position,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            data_parallel_rank=rank,
            data_parallel_size=data_parallel_size,
        )
        for rank in range(data_parallel_size)
    ]
    assert all(len(batches) == rounds for batches in ranks)
    in_order = [batches[number] for number in range(rounds) for batches in ranks]
    assert all(len(batch.input_ids) == micro_batch_size for batch in in_order)
    np.testing.assert_array_equal(torch.cat([batch.input_ids for batch in in_order]), expected[:, :-1])
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in in_order]), expected[:, 1:])


def test_a_step_reads_on_where_the_last_one_ended(samples: Samples) -> None:
    whole = micro_batches(CausalText(samples), 0, global_batch_size=12, micro_batch_size=12)[0].input_ids
    steps = [micro_batches(CausalText(samples), at, global_batch_size=4, micro_batch_size=2) for at in (0, 4, 8)]
    assert torch.equal(torch.cat([batch.input_ids for step in steps for batch in step]), whole)


def test_shapes_and_types(samples: Samples) -> None:
    for batch in micro_batches(CausalText(samples), 0, global_batch_size=6, micro_batch_size=3):
        for tensor in (batch.input_ids, batch.labels, batch.loss_mask, batch.position_ids):
            assert tensor.shape == (3, LENGTH)
        assert batch.input_ids.dtype == batch.labels.dtype == torch.uint16
        assert batch.position_ids.dtype == torch.int32
        assert batch.loss_mask.dtype == torch.float32
        assert torch.equal(batch.labels[:, :-1], batch.input_ids[:, 1:])
        assert torch.equal(batch.position_ids, torch.arange(LENGTH).repeat(3, 1))
        assert bool((batch.loss_mask == 1).all())


def test_the_first_token_of_a_document_can_be_left_out(samples: Samples) -> None:
    options = {"global_batch_size": 60, "micro_batch_size": 20}
    masked = micro_batches(CausalText(samples, mask_document_boundaries=True), 0, **options)
    for batch in masked:
        assert torch.equal(batch.loss_mask == 0, batch.labels == 10)  # a document's first id
    firsts = sum(int((batch.labels == 10).sum()) for batch in masked)
    assert firsts > 0
    assert count_targets(masked) == 60 * LENGTH - firsts
    assert count_targets(micro_batches(CausalText(samples), 0, **options)) == 60 * LENGTH


def test_documents_can_be_packed_apart(samples: Samples) -> None:
    """Their lengths fill each sample, and positions begin anew where a document does."""
    batches = micro_batches(CausalText(samples, "documents"), 0, global_batch_size=60, micro_batch_size=20)
    for batch in batches:
        assert batch.documents is not None
        assert [sum(lengths) for lengths in batch.documents] == [LENGTH] * 20
        for ids, positions, lengths in zip(batch.input_ids, batch.position_ids, batch.documents, strict=True):
            parts = ids.split(lengths)
            assert all(part[0] == 10 for part in parts[1:]), "each begins with a document's first id"
            assert not any((part[1:] == 10).any() for part in parts)
            assert torch.equal(positions, torch.cat([torch.arange(n) for n in lengths]))
    whole = micro_batches(CausalText(samples), 0, global_batch_size=60, micro_batch_size=20)
    assert all(batch.documents is None for batch in whole)
    assert all(torch.equal(one.labels, other.labels) for one, other in zip(batches, whole, strict=True))


def test_targets_are_counted_exactly_beyond_what_a_float_holds() -> None:
    ones = torch.ones(1, 1).expand(2**24 + 1, 1)
    assert count_targets([CausalBatch(ones, ones, ones, ones)]) == 2**24 + 1


def test_a_batch_that_does_not_divide_is_our_own_mistake(samples: Samples) -> None:
    with pytest.raises(AssertionError):
        micro_batches(CausalText(samples), 0, global_batch_size=5, micro_batch_size=2)


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("data")]


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_prefetching_yields_everything_in_order(length: int) -> None:
    assert list(prefetch(lambda position: position * 2, range(length))) == [2 * i for i in range(length)]
    assert data_threads() == []


def test_the_next_is_loaded_while_the_caller_works() -> None:
    started = [threading.Event() for _ in range(3)]

    def load(position: int) -> int:
        started[position].set()
        return position

    batches = prefetch(load, range(3))
    assert next(batches) == 0
    assert started[1].wait(timeout=30)
    assert not started[2].is_set()
    assert list(batches) == [1, 2]


def test_closing_ends_the_thread_even_of_an_endless_run() -> None:
    batches: Iterator[int] = prefetch(lambda position: position, count(7))
    assert [next(batches), next(batches)] == [7, 8]
    assert len(data_threads()) == 1
    batches.close()  # type: ignore[attr-defined]
    assert data_threads() == []


def test_what_loading_raises_reaches_the_caller_in_its_turn() -> None:
    batches = prefetch(lambda position: 10 // position, (2, 1, 0, 5))
    assert [next(batches), next(batches)] == [5, 10]
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert data_threads() == []


def test_a_damaged_shard_reaches_the_trainer(samples: Samples, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in samples.dataset.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    size = (folder / "shard-00003.arrow").stat().st_size
    (folder / "shard-00003.arrow").write_bytes(b"\0" * size)
    damaged = Samples(open_dataset(folder), LENGTH, shuffle=False)
    load = lambda at: micro_batches(CausalText(damaged), at, global_batch_size=20, micro_batch_size=20)  # noqa: E731
    with pytest.raises(Exception, match=r"shard-00003\.arrow: damaged shard"):
        list(prefetch(load, range(0, 100, 20)))
