"""Mixtures: each source in its own order, through stages, against counting by hand."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.config import Config, load_config
from bigtrain.data.batch import micro_batches
from bigtrain.data.loader import CausalText
from bigtrain.data.mixture import Mixture, Stage
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
from bigtrain.data.shares import stages_of
from bigtrain.data.tokenizer import SentencePieceTokenizer
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.errors import ConfigError

NAMES = ("code", "wiki", "books")
LENGTH = 4


@pytest.fixture(scope="module")
def parts(bpe: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    """Source i holds tokens of 10,000 i and more; of 50, 20 and 7 samples."""
    found = {}
    for number, (name, samples) in enumerate(zip(NAMES, (50, 20, 7), strict=True)):
        count = samples * LENGTH + 1
        tokens = 10_000 * number + 3 + np.arange(count)
        folder = tmp_path_factory.mktemp("mixture") / name
        write_dataset(folder, [Documents(tokens, np.array([count]), ["file"], [0], bytes=1)], bpe)
        found[name] = Samples(open_dataset(folder), LENGTH, seed=number)
    return found


def stage(first_position: int, *weights: float) -> Stage:
    exact = [Fraction(str(weight)) for weight in weights]
    return Stage(first_position, {name: w / sum(exact) for name, w in zip(NAMES, exact, strict=True)})


def test_each_source_comes_in_its_own_order_and_begins_anew(parts: dict[str, Samples]) -> None:
    mixture = Mixture(parts, [stage(0, 0.5, 0.3, 0.2), stage(100, 1, 0, 3), stage(130, 0, 1, 1)])
    rows = mixture.read(range(300))
    assert rows.sources is not None
    for number, samples in enumerate(parts.values()):
        mine = rows.tokens[rows.sources == number]
        np.testing.assert_array_equal(mine, samples.read(range(len(mine))).tokens)
        assert (mine // 10_000 == number).all()
    counts = np.bincount(rows.sources[:100], minlength=3).tolist()
    assert counts == [50, 30, 20] == list(mixture.counts(100).values())
    assert np.bincount(rows.sources[100:130], minlength=3).tolist() in ([7, 0, 23], [8, 0, 22])
    assert np.bincount(rows.sources[130:], minlength=3).tolist() == [0, 85, 85]
    assert mixture.counts(300) == dict(zip(NAMES, np.bincount(rows.sources).tolist(), strict=True))


@settings(max_examples=30)
@given(data_parallel_size=st.integers(1, 16), first=st.integers(0, 10**6))
def test_the_ranks_read_the_same_blend(parts: dict[str, Samples], data_parallel_size: int, first: int) -> None:
    mixture = Mixture(parts, [stage(0, 5, 3, 1), stage(5000, 1, 1, 1)])
    size = 2 * data_parallel_size
    expected = mixture.read(first + np.arange(size))
    fresh = Mixture(parts, mixture.stages)
    batches = [
        micro_batches(
            CausalText(fresh),
            first,
            global_batch_size=size,
            micro_batch_size=1,
            data_parallel_rank=rank,
            data_parallel_size=data_parallel_size,
        )
        for rank in range(data_parallel_size)
    ]
    in_order = [batches[rank][number] for number in range(2) for rank in range(data_parallel_size)]
    assert [batch.input_ids[0].tolist() for batch in in_order] == expected.tokens[:, :-1].tolist()
    assert expected.sources is not None
    assert [int(batch.sources[0]) for batch in in_order if batch.sources is not None] == expected.sources.tolist()


def test_samples_of_different_sources_have_different_numbers(parts: dict[str, Samples]) -> None:
    mixture = Mixture(parts, [stage(0, 50, 20, 7)])
    assert sorted(mixture.sample_ids(np.arange(77)).tolist()) == list(range(77))


# ------------------------------------------------------------------------------------- from the configuration

RUN = """
model: {vocab_size: 512, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 100}
data:
  sources:
    code: {path: code}
    wiki: {path: wiki}
training: {output_dir: out, steps: 100, global_batch_size: 10, micro_batch_size: 1, sequence_length: 100}
"""
TOKENS = {"code": 640_000, "wiki": 40_000}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Config]:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return lambda *overrides: load_config(path, overrides)


def first_shares(config: Config) -> list[float]:
    return [float(share) for share in stages_of(config, TOKENS)[0].shares.values()]


@pytest.mark.parametrize(
    ("overrides", "shares"),
    [
        ([], [16 / 17, 1 / 17]),
        (["data.temperature=2.0"], [0.8, 0.2]),
        (["data.sources.code.weight=3.0", "data.sources.wiki.weight=1.0"], [0.75, 0.25]),
        (["data.sources.wiki.epochs=0.5"], [0.8, 0.2]),
        (["data.sources.wiki.tokens=3e4"], [0.7, 0.3]),
        (["data.sources.wiki.epochs=1.0", "data.sources.code.tokens=6e4"], [0.6, 0.4]),
        (["data.stages=[{share: 0.9, weights: {wiki: 1.0}}]", "data.sources.wiki.epochs=0.225"], [0.9, 0.1]),
    ],
)
def test_shares_as_they_are_told(run: Callable[..., Config], overrides: list[str], shares: list[float]) -> None:
    assert first_shares(run(*overrides)) == pytest.approx(shares, rel=1e-12)


def test_stages_begin_at_steps(run: Callable[..., Config]) -> None:
    words = "data.stages=[{step: 20, weights: {code: 1.0, wiki: 3.0}}, {share: 0.9, weights: {wiki: 1.0}}]"
    stages = stages_of(run(words), TOKENS)
    assert [stage.first_position for stage in stages] == [0, 200, 900]
    assert stages[1].shares == {"code": Fraction(1, 4), "wiki": Fraction(3, 4)}
    assert stages[2].shares == {"wiki": Fraction(1)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources.wiki.epochs=3.0"], "the budgets .* make 120,000 tokens, and 100,000 are read in the run"),
        (["data.sources.wiki.epochs=1.0", "data.sources.code.tokens=2e4"], r"training\.steps=60 would fit"),
        (["data.sources.code.weight=1e6", "data.sources.wiki.weight=1.0"], "wiki: its share of the mixture is 1.0e-06"),
    ],
)
def test_budgets_that_do_not_fit(run: Callable[..., Config], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages_of(run(*overrides), TOKENS)
