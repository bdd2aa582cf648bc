"""BERT's samples: what is in them against pyarrow and `transformers`, and that positions alone decide it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bigtrain.config import parse_config
from bigtrain.data.batch import count_targets, micro_batches
from bigtrain.data.encoder import MaskedText
from bigtrain.data.masked import MaskedSamples, frame_tokens
from bigtrain.errors import DataError
from bigtrain.prepare.prepare import prepare
from bigtrain.prepare.train_tokenizer import train_wordpiece
from bigtrain.training.inputs import open_inputs

LENGTH = 24
PAD, UNK, CLS, SEP, MASK = range(5)
Make = Callable[..., MaskedSamples]


@pytest.fixture(scope="module")
def folder(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paragraphs as documents, with a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("masked")
    texts = [part for text in sources for part in text.split("\n\n") if part.strip()]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_wordpiece(texts, folder / "tokenizer", 600)
    prepare([folder / "text.jsonl"], folder / "data", folder / "tokenizer", workers=1)
    return folder


@pytest.fixture(scope="module")
def stream(folder: Path) -> list[list[int]]:
    """The documents, read with pyarrow."""
    tables = [pa.ipc.open_file(str(path)).read_all() for path in sorted((folder / "data/train").glob("*.arrow"))]
    return [document for table in tables for document in table.column("tokens").to_pylist()]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(scope="module")
def make(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """What a run with these options of `data` reads."""

    def make(**data: object) -> MaskedSamples:
        sections = {
            "model": {
                "architecture": "bert",
                "vocab_size": 600,
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
            },
            "data": {"train": str(folder / "data/train"), "shuffle": False, **data},
            "training": {
                "output_dir": str(tmp_path_factory.mktemp("run")),
                "steps": 1,
                "global_batch_size": 1,
                "sequence_length": LENGTH,
            },
        }
        reads = open_inputs(parse_config(sections)).reads
        assert isinstance(reads, MaskedSamples)
        return reads

    return make


def test_packed_samples_are_the_stream_in_their_frames(make: Make, stream: list[list[int]]) -> None:
    tokens = [token for document in stream for token in document]
    rows = make().read(range(50))
    for number, (row, length, types) in enumerate(zip(rows.labels, rows.lengths, rows.token_type_ids, strict=True)):
        text = tokens[number * (LENGTH - 2) : (number + 1) * (LENGTH - 2)]
        text = text[:-1] if text[-1] == SEP else text  # the frame has it
        assert row.tolist() == [CLS, *text, SEP] + [PAD] * (LENGTH - 2 - len(text))
        assert length == len(text) + 2
        assert not types.any()
    assert rows.sentence_labels is None
    assert not (rows.hidden & np.isin(rows.labels, [PAD, UNK, CLS, SEP])).any()
    assert (rows.input_ids[~rows.hidden] == rows.labels[~rows.hidden]).all()
    assert (rows.input_ids[rows.hidden] == MASK).mean() > 0.7


@pytest.mark.parametrize("objective", ["next", "order"])
def test_two_segments_are_framed_as_transformers_frames_them(
    objective: str, make: Make, stream: list[list[int]], theirs: PreTrainedTokenizerBase
) -> None:
    """And they are the halves of a document, of two, or changed around, each as often."""
    rows = make(sentence_objective=objective, packing="padded").read(range(300))
    labels = rows.sentence_labels
    assert labels is not None
    assert 0.4 < (labels[labels >= 0] == 1).mean() < 0.6
    for number in np.flatnonzero(labels >= 0).tolist():
        whole = rows.labels[number, : rows.lengths[number]].tolist()
        begin = int(np.argmax(rows.token_type_ids[number]))
        first, second = whole[1 : begin - 1], whole[begin:-1]
        assert whole == theirs.build_inputs_with_special_tokens(first, second)
        types = theirs.create_token_type_ids_from_sequences(first, second)
        assert rows.token_type_ids[number].tolist() == types + [0] * (LENGTH - len(types))
        document = stream[number][: LENGTH - 3]
        document = document[:-1] if document[-1] == SEP else document
        if not labels[number]:
            assert first + second == document
        elif objective == "order":
            assert second + first == document
        else:
            assert first == document[: len(first)]
            assert any(second == other[at : at + len(second)] for other in stream for at in range(len(other)))


def test_words_are_hidden_whole(make: Make, theirs: PreTrainedTokenizerBase) -> None:
    rows = make(whole_word_masking=True, mlm_probability=0.4).read(range(100))
    split = 0
    for row, hidden in zip(rows.labels, rows.hidden, strict=True):
        pieces = theirs.convert_ids_to_tokens(row.tolist())
        for i in range(2, LENGTH):  # the first word may have begun in the sample before
            if pieces[i].startswith("##"):
                assert hidden[i] == hidden[i - 1]
                split += bool(hidden[i])
    assert split > 100
    assert 0.3 < rows.hidden.sum() / (rows.labels > MASK).sum() < 0.5


def test_positions_alone_decide(make: Make) -> None:
    """For any number of ranks; and what is hidden is another in another epoch and for another seed."""
    samples = make(sentence_objective="next", packing="padded", shuffle=True)
    together = samples.read(range(24))
    ranks = [
        micro_batches(
            MaskedText(make(sentence_objective="next", packing="padded", shuffle=True)),
            0,
            global_batch_size=24,
            micro_batch_size=4,
            data_parallel_rank=rank,
            data_parallel_size=2,
        )
        for rank in range(2)
    ]
    in_order = [ranks[number % 2][number // 2] for number in range(6)]
    assert np.concatenate([batch.input_ids for batch in in_order]).tolist() == together.input_ids.tolist()
    assert (
        np.concatenate([batch.labels[:, LENGTH] for batch in in_order]).tolist()
        == np.maximum(together.sentence_labels, 0).tolist()
    )
    assert sum(count_targets(batches) for batches in ranks) == together.hidden.sum()
    assert sum(count_targets(batches, kind=1) for batches in ranks) == (together.sentence_labels >= 0).sum()
    plain = make()
    epoch = len(plain.samples)
    assert plain.read([0, epoch]).labels[0].tolist() == plain.read([epoch]).labels[0].tolist()
    assert plain.read([0]).hidden.tolist() != plain.read([epoch]).hidden.tolist()


def test_nothing_is_masked_away_where_nothing_is_padded(make: Make) -> None:
    (full,) = MaskedText(make()).batches(np.array([0]), 1)
    (padded,) = MaskedText(make(packing="padded")).batches(np.arange(8), 8)
    assert full.attention_mask is None
    assert padded.attention_mask is not None
    assert padded.attention_mask.tolist() == (padded.labels != PAD).tolist()


def test_a_tokenizer_without_the_tokens_is_told(folder: Path) -> None:
    with pytest.raises(DataError, match=r"lacks: \[CLS\] or <s>, \[MASK\] or <mask>; train one with .* It has \[PAD\]"):
        frame_tokens({"[PAD]": 0, "</s>": 1})
    assert frame_tokens({"<s>": 7, "</s>": 8, "<mask>": 9, "<pad>": 0, "[CLS]": 3}) == (3, 8, 9, 0)
