"""Pairs for a T5: put together again they are the dataset's tokens, each of them once, whatever the objective."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bigtrain.config import Config
from bigtrain.data.batch import micro_batches
from bigtrain.data.pair_batches import PairBatch, PairText
from bigtrain.data.pairs import Pairs, pair_lengths
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.errors import DataError
from bigtrain.prepare.train_tokenizer import train_sentencepiece

Tiny = Callable[..., Config]

SENTINELS = [f"<extra_id_{n}>" for n in range(16)]
MODES = ["[R]", "[S]", "[X]"]
COUNT_FROM = 100


def of_t5(tiny: Tiny, *words: str) -> Config:
    return tiny("model.architecture=t5", "training.sequence_length=40", *words)


def tokenizer_with(special: list[str], sources: list[str], folder: Path) -> Tokenizer:
    return load_tokenizer(train_sentencepiece(sources, folder / "tokenizer.model", 500, special_tokens=special))


@pytest.fixture(scope="module")
def tokenizer(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_with([*SENTINELS, "<pad>", *MODES], sources, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer) -> list[list[int]]:
    """Documents of 1 to 90 tokens, each a count."""
    lengths = np.random.default_rng(0).integers(1, 90, 120).tolist()
    return [[*range(COUNT_FROM, COUNT_FROM + length - 1), tokenizer.eos_id] for length in lengths]


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, stream: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "dataset"
    lengths, tokens = np.array([len(document) for document in stream]), np.concatenate(stream)
    documents = Documents(tokens, lengths, ["f"] * len(stream), list(range(len(stream))), bytes=1)
    write_dataset(folder, [documents], tokenizer)
    return folder


def source(config: Config, folder: Path, tokenizer: Tokenizer, packing: str = "blocks") -> PairText:
    samples = Samples(open_dataset(folder), pair_lengths(config).sample - 1, shuffle=False, packing=packing)
    return PairText(Pairs(samples, tokenizer, config))


def pairs(batches: list[PairBatch], start: int) -> Iterator[tuple[list[int], list[int]]]:
    """What encoder and decoder see of each sample, without padding, whose place the masks tell."""
    for batch in batches:
        for row in range(len(batch.labels)):
            count = int(batch.loss_mask[row].sum())
            assert batch.loss_mask[row, :count].all()
            assert batch.decoder_input_ids[row].tolist() == [start, *batch.labels[row, :-1].tolist()]
            assert (batch.labels[row, count:] == start).all()
            ids = batch.input_ids[row]
            if batch.attention_mask is not None:
                seen = int(batch.attention_mask[row].sum())
                assert batch.attention_mask[row, :seen].all()
                assert (ids[seen:] == start).all()
                ids = ids[:seen]
            yield ids.tolist(), batch.labels[row, :count].tolist()


def put_together(inputs: list[int], targets: list[int], sentinels: list[int]) -> list[int]:
    """Each sentinel replaced by what the targets say of it."""
    told: dict[int, list[int]] = {}
    for token in targets:
        if token in sentinels:
            told[token] = current = []
        else:
            current.append(token)
    whole = []
    for token in inputs:
        whole += told.pop(token) if token in sentinels else [token]
    assert not told
    return whole


@pytest.mark.parametrize("objective", ["span_corruption", "ul2", "prefix_lm"])
def test_put_together_they_are_the_stream(
    objective: str, tiny: Tiny, folder: Path, tokenizer: Tokenizer, stream: list[list[int]]
) -> None:
    config = of_t5(tiny, f"data.objective={objective}")
    lengths, tokens = pair_lengths(config), np.concatenate(stream).tolist()
    count = len(tokens) // lengths.sample - 1
    special, end = tokenizer.special_tokens, tokenizer.eos_id
    sentinels, modes = [special[name] for name in SENTINELS], [special[name] for name in MODES]
    batches = source(config, folder, tokenizer).batches(np.arange(count), 4)
    assert {batch.length for batch in batches} == {lengths.inputs + lengths.targets}
    restored, seen, padded = [], set(), 0
    for inputs, targets in pairs(batches, special["<pad>"]):
        assert inputs[-1] == targets[-1] == end
        padded += len(inputs) < lengths.inputs
        if objective == "ul2":
            seen.add(inputs.pop(0))
        parts = inputs[:-1], targets[:-1]
        restored += parts[0] + parts[1] if objective == "prefix_lm" else put_together(*parts, sentinels)
    assert restored == tokens[: count * lengths.sample]
    assert seen == (set(modes) if objective == "ul2" else set())
    assert padded > 0 if objective != "span_corruption" else padded == 0


def test_a_document_to_a_sample(tiny: Tiny, folder: Path, tokenizer: Tokenizer, stream: list[list[int]]) -> None:
    """Its own end is not said twice; one that is nothing but its end, or one token more, has no target."""
    config = of_t5(tiny)
    special, length = tokenizer.special_tokens, pair_lengths(config).sample
    sentinels = [special[name] for name in SENTINELS]
    batches = source(config, folder, tokenizer, "padded").batches(np.arange(len(stream)), 5)
    short = 0
    for document, (inputs, targets) in zip(stream, pairs(batches, special["<pad>"]), strict=True):
        expected = [token for token in document[:length] if token != tokenizer.eos_id]
        short += len(expected) < 2
        assert inputs[-1] == tokenizer.eos_id
        assert put_together(inputs[:-1], targets[:-1], sentinels) == expected
        assert bool(targets) == (len(expected) > 1)
    assert short > 1


def test_a_sample_is_the_same_for_whoever_reads_it(tiny: Tiny, folder: Path, tokenizer: Tokenizer) -> None:
    config = of_t5(tiny, "data.objective=ul2")
    whole = source(config, folder, tokenizer).batches(np.arange(12), 12)[0]
    for rank in range(2):
        parts = micro_batches(
            source(config, folder, tokenizer),
            0,
            global_batch_size=12,
            micro_batch_size=2,
            data_parallel_rank=rank,
            data_parallel_size=2,
        )
        for number, part in enumerate(parts):
            first = (number * 2 + rank) * 2
            assert part.input_ids.tolist() == whole.input_ids[first : first + 2].tolist()
            assert part.labels.tolist() == whole.labels[first : first + 2].tolist()
    other = source(of_t5(tiny, "data.objective=ul2", "training.seed=5"), folder, tokenizer)
    assert other.batches(np.arange(12), 12)[0].input_ids.tolist() != whole.input_ids.tolist()


def test_without_padding_token_the_decoder_starts_from_the_end(
    sources: list[str], tiny: Tiny, folder: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(SENTINELS, sources, tmp_path)
    (batch,) = source(of_t5(tiny), folder, tokenizer).batches(np.arange(2), 2)
    assert batch.decoder_input_ids[:, 0].tolist() == [tokenizer.eos_id] * 2


@pytest.mark.parametrize(
    ("special", "words", "message"),
    [
        ([], [], r"needs special tokens .*: <extra_id_0> to <extra_id_1> \(it has 0 of these\)\. Train one with"),
        (SENTINELS[:3], ["training.sequence_length=90"], r"<extra_id_0> to <extra_id_4> \(it has 3 of these\)"),
        (SENTINELS, ["data.objective=ul2"], r"does not have: \[R\], \[S\], \[X\]\. "),
        (SENTINELS, ["data.target_length=8"], r"data\.target_length \(8\) is too short: .* targets of up to 10 tokens"),
        ([], ["training.sequence_length=2"], r"an encoder's input of 2 tokens has no room"),
    ],
)
def test_what_cannot_be_is_told(
    special: list[str], words: list[str], message: str, sources: list[str], tiny: Tiny, folder: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(special, sources, tmp_path)
    with pytest.raises(DataError, match=message):
        source(of_t5(tiny, *words), folder, tokenizer)


def test_a_prefix_needs_no_sentinels(sources: list[str], tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    source(of_t5(tiny, "data.objective=prefix_lm"), folder, tokenizer_with([], sources, tmp_path))
