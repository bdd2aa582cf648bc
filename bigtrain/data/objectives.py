"""What a sample is made into: fill-in-the-middle, span corruption (T5, UL2), masking (BERT).

Pure functions of token ids and of random numbers that (seed, position) give, see `rng_at`: a resume, another number of
processes and another day make the same of the same sample. Tokens are whole numbers in arrays of one axis, of any
integer type; results have the type that was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigtrain.errors import DataError

_MASK_64 = 2**64 - 1
_SHORTEST_TURNED = 16
"""Tokens of the shortest document that is worth the three it loses by being turned around."""


def rng_at(seed: int, position: int) -> np.random.Generator:
    """The random numbers of the sample at `position` of a run with that seed.

    The two are the key of Philox-4x64, a generator without state but a counter (Salmon et al. 2011, "Parallel random
    numbers: as easy as 1, 2, 3"), whose streams of different keys are independent by construction. Made in about
    10 µs. Where a sample needs several transforms, give them one generator in turn, or different seeds.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed & _MASK_64, position & _MASK_64], dtype=np.uint64)))


class FimSentinels(NamedTuple):
    """Ids of the tokens that stand before the parts of a document."""

    prefix: int
    middle: int
    suffix: int


_FIM_NAMES = ("<|fim_{}|>", "<fim_{}>", "<fim-{}>")
"""As Qwen and OpenAI, StarCoder, and SantaCoder write them."""


def fim_sentinels(special_tokens: Mapping[str, int]) -> FimSentinels:
    """The sentinels among a tokenizer's special tokens, by their usual names. Raises DataError if there are none."""
    for form in _FIM_NAMES:
        names = [form.format(part) for part in FimSentinels._fields]
        if all(name in special_tokens for name in names):
            return FimSentinels(*(special_tokens[name] for name in names))
    raise DataError(
        "to fill in the middle the tokenizer needs three special tokens, named "
        f"{', '.join(_FIM_NAMES[0].format(part) for part in FimSentinels._fields)}; "
        f"train it with --special-token for each. It has {', '.join([*special_tokens][:20]) or 'none'}"
    )


def fill_in_the_middle(
    tokens: np.ndarray,
    starts: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    spm_rate: float,
    sentinels: FimSentinels,
    eos_id: int,
) -> tuple[np.ndarray, int]:
    """Turn documents of a sample around so that their middle comes last (arXiv:2207.14255): the sample, of the same
    length, and how many of its tokens were dropped.

    `tokens` [n] holds documents or parts of them, without padding; `starts` [n] is true where a document begins. Each
    is turned with probability `rate`: cut at two different places, all pairs of places equally likely, into a prefix,
    a middle of at least one token and a suffix, and put together as

        PSM: <prefix> prefix <suffix> suffix <middle> middle
        SPM: <prefix> <suffix> suffix <middle> prefix middle     with probability `spm_rate`

    The latter is the paper's "variant 2" (its appendix on SPM): prefix and middle follow each other, and both orders
    begin alike. A document's end-of-document token `eos_id` stays last. Documents are turned within their sample ("at
    context level"), cuts lie between tokens, and short documents (below 16 tokens) stay as they are.

    The three sentinels take the place of three tokens of the document, so that every document stays where it is and
    `starts` stays true. A part whose begin lies in an earlier sample loses its first three, which follow on nothing
    that the model sees; any other document its last three before `eos_id`.
    """
    begins = np.flatnonzero(starts)
    if not len(begins) or begins[0]:
        begins = np.concatenate([[0], begins])
    ends = np.append(begins[1:], len(tokens))
    ends = ends - (tokens[ends - 1] == eos_id)
    draws = rng.random((len(begins), 4))
    turned = np.flatnonzero((draws[:, 0] < rate) & (ends - begins >= _SHORTEST_TURNED))
    result = tokens.copy()
    for i in turned.tolist():
        begin, end = int(begins[i]), int(ends[i])
        is_continued = begin == 0 and not starts[0]
        kept = tokens[begin + 3 : end] if is_continued else tokens[begin : end - 3]
        first = int(draws[i, 2] * (len(kept) + 1))
        second = int(draws[i, 3] * len(kept))
        second += second >= first  # any place but the first
        first, second = min(first, second), max(first, second)
        prefix, middle, suffix = kept[:first], kept[first:second], kept[second:]
        parts: list[np.ndarray | list[int]]
        if draws[i, 1] < spm_rate:
            parts = [[sentinels.prefix, sentinels.suffix], suffix, [sentinels.middle], prefix, middle]
        else:
            parts = [[sentinels.prefix], prefix, [sentinels.suffix], suffix, [sentinels.middle], middle]
        result[begin:end] = np.concatenate(parts)
    return result, 3 * len(turned)


@dataclass(frozen=True)
class Denoiser:
    """How much of a sample is hidden, and in spans of what length (UL2, arXiv:2205.05131, table 1)."""

    noise_density: float = 0.15
    """Share of the tokens that are hidden."""
    mean_span_length: float | None = 3.0
    """Tokens of a span on average; None: one span, at the end, which is a prefix language model."""
    mode: str | None = None
    """UL2's token before the encoder's input, that tells the model which kind it has before it."""


T5 = Denoiser()
"""T5's, which is also the first of UL2's."""
UL2 = (
    Denoiser(0.15, 3.0, "[R]"),
    Denoiser(0.15, 8.0, "[R]"),
    Denoiser(0.25, None, "[S]"),
    Denoiser(0.5, 3.0, "[X]"),
    Denoiser(0.5, 8.0, "[X]"),
    Denoiser(0.15, 64.0, "[X]"),
    Denoiser(0.5, 64.0, "[X]"),
)
"""UL2's mixture: regular spans, sequential, and extreme ones. Choose with `rng.integers(len(UL2))`."""


def span_counts(length: int, denoiser: Denoiser = T5) -> tuple[int, int]:
    """(tokens hidden, spans) in a sample of `length` tokens, which nothing else decides: rounded to whole numbers, and
    at least one token hidden, one kept, and one between two spans.

    Raises:
        DataError: `length` is below 2.
    """
    if length < 2:
        raise DataError(f"a sample of {length} tokens has no span to hide; it needs 2 at least")
    noise = min(max(round(length * denoiser.noise_density), 1), length - 1)
    wanted = 1 if denoiser.mean_span_length is None else round(noise / denoiser.mean_span_length)
    return noise, min(max(wanted, 1), noise, length - noise)


def span_corruption_lengths(input_length: int, denoiser: Denoiser = T5) -> tuple[int, int]:
    """(tokens of a sample, target length) of the longest sample whose inputs, as `corrupt_spans` makes them, are no
    longer than `input_length`. Up to a density of one half they fill it: 512 inputs take 568 tokens, with 114 targets.

    Raises:
        DataError: `input_length` is below 3: one token, one sentinel and the end.
    """
    if input_length < 3:
        raise DataError(f"an encoder's input of {input_length} tokens has no room for a token, a sentinel and the end")
    length = input_length - 1
    while _input_length(length + 1, denoiser) <= input_length:
        length += 1
    noise, spans = span_counts(length, denoiser)
    return length, noise + spans + 1


def _input_length(length: int, denoiser: Denoiser) -> int:
    noise, spans = span_counts(length, denoiser)
    return length - noise + spans + 1


def corrupt_spans(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    sentinel_ids: Sequence[int],
    eos_id: int,
    denoiser: Denoiser = T5,
) -> tuple[np.ndarray, np.ndarray]:
    """T5's objective (arXiv:1910.10683, section 3.1.4): (inputs, targets) of an encoder and a decoder.

        tokens   a b c d e f g h        hidden: c d and g h
        inputs   a b <0> e f <1> eos
        targets  <0> c d <1> g h eos

    The first of `sentinel_ids` stands for the first span and so on. As in the authors' procedure the numbers of hidden
    tokens and of spans follow from the length (`span_counts`), hidden and kept tokens are each cut into that many parts
    of at least one token, all ways to cut being equally likely, and the parts take turns, a kept one first; so the
    sample ends with a hidden one, and `eos_id` stands where the paper's figure 2 has one more sentinel.

    Raises:
        DataError: fewer sentinels than spans, or fewer than 2 tokens.
    """
    noise, spans = span_counts(len(tokens), denoiser)
    if spans > len(sentinel_ids):
        raise DataError(
            f"{len(tokens)} tokens with {denoiser.noise_density:.0%} of them hidden make {spans} spans, each with a "
            f"sentinel of its own; the tokenizer has {len(sentinel_ids)}"
        )
    lengths = np.empty(2 * spans, dtype=np.int64)
    lengths[0::2] = _segments(len(tokens) - noise, spans, rng)
    lengths[1::2] = _segments(noise, spans, rng)
    hidden = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
    first_hidden = np.cumsum(lengths)[0::2]
    return (
        _with_sentinels(tokens, ~hidden, first_hidden, sentinel_ids[:spans], eos_id),
        _with_sentinels(tokens, hidden, first_hidden - 1, sentinel_ids[:spans], eos_id),
    )


def _with_sentinels(
    tokens: np.ndarray, taken: np.ndarray, places: np.ndarray, sentinel_ids: Sequence[int], eos_id: int
) -> np.ndarray:
    """The tokens that are `taken`, sentinels at `places` where none is, and the end."""
    marked = np.append(tokens, tokens.dtype.type(eos_id))
    marked[places] = sentinel_ids
    taken = np.append(taken, True)
    taken[places] = True
    return marked[taken]


def _segments(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `parts` non-empty parts of `total`, uniform over all ways to cut it."""
    borders = np.zeros(parts + 1, dtype=np.int64)
    borders[1:-1] = rng.choice(total - 1, parts - 1, replace=False, shuffle=False) + 1
    borders[-1] = total
    borders.sort()
    return borders[1:] - borders[:-1]


def split_prefix(tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A prefix language model's sample (arXiv:1910.10683, section 3.3.1): what is given, and what is to be said.

    Cut at a random place, all equally likely; neither part is empty. Raises DataError below 2 tokens.
    """
    if len(tokens) < 2:
        raise DataError(f"a sample of {len(tokens)} tokens cannot be split; it needs 2 at least")
    cut = int(rng.integers(1, len(tokens)))
    return tokens[:cut], tokens[cut:]


def mask_tokens(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    probability: float = 0.15,
    word_starts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's objective (arXiv:1810.04805, section 3.1): (inputs, which tokens are to be predicted).

    Each token is chosen with `probability`. A chosen one becomes `mask_id` in 80 % of the cases, a token drawn evenly
    from all `vocab_size` in 10 %, and stays in 10 %. Tokens of `special_ids` are never chosen. With `word_starts`
    (bool, true where a word begins) whole words are chosen, all tokens of one or none (whole word masking), and the
    probability of each token is still the same. As the random numbers are those of a position that never returns,
    masks differ from epoch to epoch ("dynamic masking", arXiv:1907.11692, section 4.1).

    The number of chosen tokens varies, and can be none in a short sample.
    """
    units = np.arange(len(tokens)) if word_starts is None else np.cumsum(word_starts)
    places = np.flatnonzero(rng.random(len(tokens) + 1)[units] < probability)
    if len(special_ids):
        places = places[~np.isin(tokens[places], special_ids)]
    becomes = rng.random(len(places))
    inputs = tokens.copy()
    inputs[places[becomes < 0.8]] = mask_id
    replaced = places[(becomes >= 0.8) & (becomes < 0.9)]
    inputs[replaced] = rng.integers(vocab_size, size=len(replaced))
    chosen = np.zeros(len(tokens), dtype=bool)
    chosen[places] = True
    return inputs, chosen
