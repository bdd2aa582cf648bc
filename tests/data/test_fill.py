"""Fill-in-the-middle in a run's samples: undone token by token, and the same for every rank and after a resume."""

from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.batch import micro_batches
from bigtrain.data.fill import FillInTheMiddle
from bigtrain.data.loader import CausalText
from bigtrain.data.objectives import fim_sentinels
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
from bigtrain.data.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from bigtrain.data.writing import Documents, write_dataset
from bigtrain.errors import DataError
from bigtrain.prepare.train_tokenizer import train_sentencepiece

LENGTH = 127
NAMES = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]


@pytest.fixture(scope="module")
def tokenizer(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("fim") / "tokenizer.model"
    return load_tokenizer(train_sentencepiece(sources, path, 500, special_tokens=NAMES))


@pytest.fixture(scope="module")
def samples(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Documents of 5 to 200 tokens, each a count from 20 on."""
    lengths = np.random.default_rng(0).integers(5, 200, 300)
    tokens = np.concatenate([[*range(20, 20 + n - 1), tokenizer.eos_id] for n in lengths.tolist()])
    folder = tmp_path_factory.mktemp("fim") / "dataset"
    write_dataset(folder, [Documents(tokens, lengths, ["f"] * 300, list(range(300)), bytes=1)], tokenizer)
    return Samples(open_dataset(folder), LENGTH, seed=4)


def test_documents_stay_where_they_are_and_lose_three_tokens_when_turned(
    samples: Samples, tokenizer: Tokenizer
) -> None:
    prefix, middle, suffix = fim_sentinels(tokenizer.special_tokens)
    turned_samples = FillInTheMiddle(samples, tokenizer, seed=1, rate=0.7, spm_rate=0.5)
    plain, turned = samples.read(range(60), with_begins=True), turned_samples.read(range(60), with_begins=True)
    assert turned.begins == plain.begins
    kinds = {"left": 0, "psm": 0, "spm": 0}
    for row, before, begins in zip(turned.tokens.tolist(), plain.tokens.tolist(), plain.begins or [], strict=True):
        for begin, end in zip([0, *begins], [*begins, LENGTH + 1], strict=True):
            part, whole = row[begin:end], before[begin:end]
            if part == whole:
                kinds["left"] += 1
                continue
            assert (part[-1] == tokenizer.eos_id) == (whole[-1] == tokenizer.eos_id)
            part = [token for token in part if token != tokenizer.eos_id]
            at = part.index(suffix), part.index(middle)
            assert part[0] == prefix
            if at[0] == 1:
                kinds["spm"] += 1
                head = part[at[1] + 1 :]
                tail = part[2 : at[1]]
                restored = head + tail
            else:
                kinds["psm"] += 1
                restored = part[1 : at[0]] + part[at[1] + 1 :] + part[at[0] + 1 : at[1]]
            kept = [token for token in whole if token != tokenizer.eos_id]
            assert restored in (kept[:-3], kept[3:])
    assert min(kinds.values()) > 15


def test_a_sample_is_turned_the_same_for_whoever_reads_it(samples: Samples, tokenizer: Tokenizer) -> None:
    make = lambda seed: FillInTheMiddle(samples, tokenizer, seed=seed, rate=0.9, spm_rate=0.5)  # noqa: E731
    together = make(1).read(range(40)).tokens
    ranks = [
        micro_batches(
            CausalText(make(1)),
            0,
            global_batch_size=40,
            micro_batch_size=1,
            data_parallel_rank=rank,
            data_parallel_size=2,
        )
        for rank in range(2)
    ]
    in_order = [ranks[number % 2][number // 2].input_ids[0].tolist() for number in range(40)]
    assert in_order == together[:, :-1].tolist()
    assert make(2).read(range(40)).tokens.tolist() != together.tolist()
    epoch = len(samples)
    again = samples.sample_ids([3])[0]
    later = next(p for p in range(epoch, 2 * epoch) if samples.sample_ids([p])[0] == again)
    assert make(1).read([3]).tokens.tolist() != make(1).read([later]).tokens.tolist(), "another epoch, another turn"


def test_a_tokenizer_without_sentinels_is_told(samples: Samples, bpe: SentencePieceTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs three special tokens, named .*fim_prefix"):
        FillInTheMiddle(samples, bpe, seed=1, rate=0.5, spm_rate=0.5)
