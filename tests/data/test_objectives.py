"""Objectives: nothing is lost that is not told, and what is drawn is distributed as the papers say."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.data.objectives import (
    T5,
    UL2,
    Denoiser,
    FimSentinels,
    corrupt_spans,
    fill_in_the_middle,
    fim_sentinels,
    mask_tokens,
    rng_at,
    span_corruption_lengths,
    span_counts,
    split_prefix,
)
from bigtrain.errors import DataError

EOS = 1
FIM = FimSentinels(prefix=90_001, middle=90_002, suffix=90_003)
SENTINELS = range(50_000, 53_000)
POSITIONS = st.tuples(st.integers(0, 2**63), st.integers(0, 2**50))


def test_the_same_place_gives_the_same_numbers_and_others_do_not() -> None:
    places = [(seed, position) for seed in (0, 1, 2**64 - 1) for position in (0, 1, 10**12)]
    drawn = [tuple(rng_at(*place).integers(2**62, size=4)) for place in places]
    assert len(set(drawn)) == len(places)
    assert drawn == [tuple(rng_at(*place).integers(2**62, size=4)) for place in places]


def test_numbers_of_neighbouring_places_are_unrelated() -> None:
    first = np.array([rng_at(7, position).random() for position in range(4000)])
    assert abs(first.mean() - 0.5) < 0.025
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.08  # five standard deviations


# --- fill in the middle


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Documents of every length, each token another; the first may have begun before, the last may go on."""
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    tokens = np.arange(100, 100 + sum(lengths), dtype=draw(st.sampled_from([np.int64, np.uint32])))
    starts = np.zeros(len(tokens), dtype=bool)
    borders = np.cumsum([0, *lengths[:-1]])
    starts[borders] = True
    starts[0] = draw(st.booleans())
    tokens[borders[1:] - 1] = EOS
    if draw(st.booleans()):
        tokens[-1] = EOS
    return tokens, starts


def unturn(document: list[int]) -> list[int]:
    """The tokens of a turned document in their old order, found by the sentinels alone."""
    assert document[0] == FIM.prefix
    middle_at = document.index(FIM.middle)
    if document[1] == FIM.suffix:  # SPM; or PSM with an empty prefix, which is the same
        return document[middle_at + 1 :] + document[2:middle_at]
    suffix_at = document.index(FIM.suffix)
    return document[1:suffix_at] + document[middle_at + 1 :] + document[suffix_at + 1 : middle_at]


@given(sample=samples(), rate=st.sampled_from([0.0, 0.5, 1.0]), spm_rate=st.sampled_from([0.0, 0.5, 1.0]), at=POSITIONS)
def test_turned_documents_are_the_old_ones_but_for_the_tokens_told(
    sample: tuple[np.ndarray, np.ndarray], rate: float, spm_rate: float, at: tuple[int, int]
) -> None:
    tokens, starts = sample
    given_tokens = tokens.copy()
    turned, dropped = fill_in_the_middle(
        tokens, starts, rng_at(*at), rate=rate, spm_rate=spm_rate, sentinels=FIM, eos_id=EOS
    )
    assert (turned.shape, turned.dtype) == (tokens.shape, tokens.dtype)
    np.testing.assert_array_equal(tokens, given_tokens)
    borders = [0, *(np.flatnonzero(starts[1:]) + 1), len(tokens)]
    lost = 0
    for begin, end in pairwise(borders):
        old, new = tokens[begin:end].tolist(), turned[begin:end].tolist()
        if new == old:
            assert rate < 1 or len(old) <= 16
            continue
        assert rate > 0
        assert (old[-1] == EOS) == (new[-1] == EOS)
        ending = [EOS] if old[-1] == EOS else []
        old, new = old[: len(old) - len(ending)], new[: len(new) - len(ending)]
        assert (new[1] == FIM.suffix) >= (spm_rate == 1)
        is_continued = begin == 0 and not starts[0]
        restored = unturn(new)
        assert restored == (old[3:] if is_continued else old[:-3])
        lost += 3
    assert lost == dropped


def test_the_orders_are_those_of_the_paper() -> None:
    tokens, starts = np.arange(100, 121), np.zeros(21, dtype=bool)
    starts[0] = True
    psm, _ = fill_in_the_middle(tokens, starts, rng_at(0, 3), rate=1, spm_rate=0, sentinels=FIM, eos_id=EOS)
    spm, _ = fill_in_the_middle(tokens, starts, rng_at(0, 3), rate=1, spm_rate=1, sentinels=FIM, eos_id=EOS)
    psm_list = psm.tolist()
    suffix_at, middle_at = psm_list.index(FIM.suffix), psm_list.index(FIM.middle)
    prefix, suffix, middle = psm_list[1:suffix_at], psm_list[suffix_at + 1 : middle_at], psm_list[middle_at + 1 :]
    assert middle
    assert prefix + middle + suffix == list(range(100, 118))
    assert spm.tolist() == [FIM.prefix, FIM.suffix, *suffix, FIM.middle, *prefix, *middle]


def test_all_cuts_are_equally_likely() -> None:
    tokens, starts = np.arange(100, 116), np.zeros(16, dtype=bool)  # 13 tokens are left: 14 places, 91 pairs
    starts[0] = True
    seen: Counter[tuple[int, int]] = Counter()
    turns = begins_like_spm = 0
    for position in range(4550):
        row, mixed = (
            fill_in_the_middle(
                tokens, starts, rng_at(5, position), rate=0.9, spm_rate=spm_rate, sentinels=FIM, eos_id=EOS
            )[0].tolist()
            for spm_rate in (0.0, 0.3)
        )
        if FIM.middle in row:
            turns += 1
            begins_like_spm += mixed[1] == FIM.suffix
            prefix = row.index(FIM.suffix) - 1
            seen[prefix, prefix + len(row) - 1 - row.index(FIM.middle)] += 1
    assert set(seen) == set(combinations(range(14), 2))
    assert turns / 4550 == pytest.approx(0.9, abs=0.023)
    assert begins_like_spm / turns == pytest.approx(0.3 + 0.7 / 7, abs=0.039), "a prefix is empty in one case of seven"
    expected = sum(seen.values()) / 91
    chi_squared = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_squared < 90 + 5 * (2 * 90) ** 0.5


def test_sentinels_are_found_by_name() -> None:
    starcoder = {"<fim_suffix>": 3, "<fim_prefix>": 1, "<fim_middle>": 2, "<fim_pad>": 4}
    assert fim_sentinels(starcoder) == FimSentinels(prefix=1, middle=2, suffix=3)
    with pytest.raises(DataError, match=r"named <\|fim_prefix\|>.* It has </s>, <fim_prefix>"):
        fim_sentinels({"</s>": 0, "<fim_prefix>": 1})


# --- span corruption

DENOISERS = st.one_of(
    st.sampled_from(UL2), st.builds(Denoiser, st.floats(0.01, 0.99), st.one_of(st.none(), st.floats(1, 70)))
)


@given(length=st.integers(2, 3000), denoiser=DENOISERS, at=POSITIONS)
def test_inputs_and_targets_together_are_the_sample(length: int, denoiser: Denoiser, at: tuple[int, int]) -> None:
    tokens = np.arange(100, 100 + length)
    inputs, targets = (
        part.tolist()
        for part in corrupt_spans(tokens, rng_at(*at), sentinel_ids=SENTINELS, eos_id=EOS, denoiser=denoiser)
    )
    assert inputs.pop() == targets.pop() == EOS
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token >= 50_000:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    assert list(spans) == [token for token in inputs if token >= 50_000] == list(range(50_000, 50_000 + len(spans)))
    assert all(spans.values()), "no span is empty"
    assert inputs[0] < 50_000
    assert all(a < 50_000 or b < 50_000 for a, b in pairwise(inputs)), "spans lie apart"
    restored = [t for token in inputs for t in spans.get(token, [token])]
    assert restored == tokens.tolist()
    hidden = sum(map(len, spans.values()))
    assert abs(hidden - min(max(length * denoiser.noise_density, 1), length - 1)) <= 0.5
    assert (hidden, len(spans)) == span_counts(length, denoiser)
    if denoiser.mean_span_length is None:
        assert inputs == [*range(100, 100 + length - hidden), 50_000]


@given(length=st.integers(3, 1500), denoiser=st.sampled_from(UL2))
def test_an_encoder_is_filled(length: int, denoiser: Denoiser) -> None:
    tokens, targets = span_corruption_lengths(length, denoiser)
    made = corrupt_spans(np.arange(tokens), rng_at(0, length), sentinel_ids=SENTINELS, eos_id=EOS, denoiser=denoiser)
    assert tuple(map(len, made)) == (length, targets)
    longer = corrupt_spans(np.arange(tokens + 1), rng_at(0, 0), sentinel_ids=SENTINELS, eos_id=EOS, denoiser=denoiser)
    assert len(longer[0]) > length


def test_t5s_own_lengths() -> None:
    """The figures of T5's published configuration: 512 inputs, 114 targets, out of 568 tokens."""
    assert span_corruption_lengths(512, T5) == (568, 114)


def test_all_ways_to_cut_are_equally_likely() -> None:
    """Ten tokens, four hidden in two spans: three ways for the hidden, five for the kept."""
    denoiser = Denoiser(0.4, 2.0)
    seen = Counter(
        tuple(corrupt_spans(np.arange(10), rng_at(3, i), sentinel_ids=SENTINELS, eos_id=EOS, denoiser=denoiser)[0])
        for i in range(3000)
    )
    assert len(seen) == 15
    assert all(abs(count - 200) < 5 * 200**0.5 for count in seen.values())


def test_too_few_sentinels_are_told() -> None:
    with pytest.raises(DataError, match=r"1000 tokens with 15% of them hidden make 50 spans.* the tokenizer has 10"):
        corrupt_spans(np.arange(1000), rng_at(0, 0), sentinel_ids=range(10), eos_id=EOS)


def test_samples_too_short_to_hide_anything_are_told() -> None:
    with pytest.raises(DataError, match="a sample of 1 tokens"):
        corrupt_spans(np.arange(1), rng_at(0, 0), sentinel_ids=SENTINELS, eos_id=EOS)
    with pytest.raises(DataError, match="input of 2 tokens"):
        span_corruption_lengths(2)
    with pytest.raises(DataError, match="cannot be split"):
        split_prefix(np.arange(1), rng_at(0, 0))


def test_a_prefix_ends_anywhere() -> None:
    cuts = Counter()
    for position in range(2000):
        given_part, said = split_prefix(np.arange(5), rng_at(0, position))
        assert [*given_part, *said] == [0, 1, 2, 3, 4]
        cuts[len(given_part)] += 1
    assert sorted(cuts) == [1, 2, 3, 4]
    assert all(abs(count - 500) < 5 * 500**0.5 for count in cuts.values())


# --- masking

VOCABULARY, MASK, SPECIAL = 30_000, 4, (0, 1, 2, 3, 4)


def masked(tokens: np.ndarray, position: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    return mask_tokens(
        tokens, rng_at(11, position), mask_id=MASK, vocab_size=VOCABULARY, special_ids=SPECIAL, **options
    )


def within(count: int, trials: int, probability: float) -> bool:
    """Whether a binomial count lies within five standard deviations."""
    return abs(count - trials * probability) < 5 * (trials * probability * (1 - probability)) ** 0.5


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_shares_are_those_of_the_paper(probability: float) -> None:
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, 200_000)
    tokens[::10] = 2
    before = tokens.copy()
    inputs, chosen = masked(tokens, 0, probability=probability)
    np.testing.assert_array_equal(tokens, before)
    assert not chosen[::10].any(), "special tokens are left alone"
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    count = int(chosen.sum())
    assert within(count, 180_000, probability)
    assert within(int((inputs[chosen] == MASK).sum()), count, 0.8 + 0.1 / VOCABULARY)
    kept = int((inputs[chosen] == tokens[chosen]).sum())
    assert within(kept, count, 0.1 + 0.1 / VOCABULARY)
    others = inputs[chosen & (inputs != MASK) & (inputs != tokens)]
    assert abs(others.mean() / VOCABULARY - 0.5) < 5 * (1 / 12 / len(others)) ** 0.5


def test_shares_are_those_of_transformers() -> None:
    """The collator draws otherwise, so that what can be compared is how often each thing happens."""
    import tokenizers
    import torch
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    words |= {f"w{i}": i for i in range(5, VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    collate = DataCollatorForLanguageModeling(PreTrainedTokenizerFast(tokenizer_object=backend, **names), seed=0)
    rows = np.random.default_rng(1).integers(5, VOCABULARY, (64, 256))
    rows[:, 0], rows[:, -1] = 2, 3
    theirs = collate([{"input_ids": torch.tensor(row)} for row in rows])
    ours = [masked(row, i) for i, row in enumerate(rows)]

    def shares(inputs: np.ndarray, chosen: np.ndarray) -> list[float]:
        happened = (chosen, chosen & (inputs == MASK), chosen & (inputs == rows), chosen & (inputs != rows))
        return [float(x.mean()) for x in happened]

    of_theirs = shares(theirs["input_ids"].numpy(), theirs["labels"].numpy() != -100)
    of_ours = shares(np.stack([inputs for inputs, _ in ours]), np.stack([chosen for _, chosen in ours]))
    for a, b in zip(of_ours, of_theirs, strict=True):
        assert abs(a - b) < 5 * (2 * b * (1 - b) / rows.size) ** 0.5


def test_the_same_position_gives_the_same_mask_and_another_another() -> None:
    tokens = np.arange(5, 517)
    first, again, other = (masked(tokens, position)[1] for position in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@given(
    starts=st.lists(st.booleans(), max_size=300), at=st.integers(0, 2**40), dtype=st.sampled_from([np.uint16, np.int64])
)
def test_words_are_masked_whole_or_not_at_all(starts: list[bool], at: int, dtype: type) -> None:
    word_starts = np.array(starts, dtype=bool)
    tokens = np.arange(5, 5 + len(starts)).astype(dtype)
    inputs, chosen = masked(tokens, at, probability=0.5, word_starts=word_starts)
    assert inputs.dtype == tokens.dtype
    for i in range(1, len(starts)):
        assert starts[i] or chosen[i] == chosen[i - 1]


def test_a_long_word_is_as_likely_as_a_short_one() -> None:
    lengths = np.resize([1, 5], 20_000)
    word_starts = np.zeros(lengths.sum(), dtype=bool)
    word_starts[np.cumsum(lengths) - lengths] = True
    _, chosen = masked(np.full(lengths.sum(), 9), 0, word_starts=word_starts)
    of_words = chosen[word_starts]
    assert within(int(of_words[0::2].sum()), 10_000, 0.15)
    assert within(int(of_words[1::2].sum()), 10_000, 0.15)
