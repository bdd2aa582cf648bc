"""Conversations as tokens: what a chat template makes of them, and which tokens an assistant says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chats import MARKED, PLAIN, TALK, chat_tokenizer
from transformers import AutoTokenizer

from bigtrain.config import Config, parse_config, validate
from bigtrain.config.tasks import ColumnsConfig
from bigtrain.data.examples import read_examples
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import ConfigError, DataError
from bigtrain.finetune.encode import Encoded, Encoder

FORGETFUL = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else 'gone' }}")
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make(template: str | None) -> Path:
        shutil.rmtree(tmp_path / "tokenizer", ignore_errors=True)
        chat_tokenizer(template).save_pretrained(tmp_path / "tokenizer")
        return tmp_path / "tokenizer"

    return make


def configured(tokenizer: Path, file: Path, **finetune: Any) -> Config:
    return parse_config(
        {
            "model": {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            "tokenizer": {"path": str(tokenizer)},
            "finetune": {
                "task": "sequence_to_sequence",
                "train": str(file),
                "columns": {"messages": "talk"},
                **finetune,
            },
            "training": {"output_dir": "run", "steps": 1, "global_batch_size": 2, "sequence_length": 128},
        }
    )


def encoded(tokenizer: Path, *talks: Any, labelled: bool = True) -> Encoded:
    file = tokenizer.with_name("talks.jsonl")
    file.write_text("".join(json.dumps({"talk": talk}) + "\n" for talk in talks))
    config = configured(tokenizer, file)
    examples = read_examples(file, "sequence_to_sequence", config.finetune.columns, labelled=labelled)
    return Encoder(config, load_tokenizer(tokenizer), ()).encode(examples)


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_the_loss_is_of_what_the_assistant_says(template: str, made: Made) -> None:
    tokenizer = made(template)
    (item,) = encoded(tokenizer, TALK).items
    theirs = AutoTokenizer.from_pretrained(tokenizer)
    found = theirs.apply_chat_template(TALK, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True)
    assert [*item.ids, item.labels[-1]] == found["input_ids"]
    assert [0, *item.weights] == found["assistant_masks"]
    said = [label for label, weight in zip(item.labels, item.weights, strict=True) if weight]
    assert theirs.decode(said) == "4<|im_end|>The end of a turn.<|im_end|>"
    # what an evaluation has continued: all before the last answer
    assert theirs.decode(item.ids[: item.first]).endswith("<|im_end|> is?<|im_end|>\n<|im_start|>assistant\n")


def test_what_is_to_be_answered(made: Made) -> None:
    found = encoded(made(PLAIN), TALK[:-1], TALK, labelled=False)
    question, whole = found.items
    assert [*question.ids] == [*whole.ids[: whole.first]]
    assert question.first == len(question.ids)
    assert not question.weights.any()
    assert [example.pair for example in found.examples.examples] == [None, "The end of a turn."]


def test_what_is_left_out_or_refused(made: Made, tmp_path: Path) -> None:
    found = encoded(made(PLAIN), TALK[:-1], TALK[:2], [], "talk", [{"role": "user"}])
    assert [len(example.messages) for example in found.examples.examples] == [3]  # to the last answer
    assert "4 of 5 examples left out: 2 without an answer, 2 whose messages are no list" in found.notes[0]
    with pytest.raises(
        DataError, match=r"line 1: the tokenizer's chat template cannot spell it: it spells a beginning"
    ):
        encoded(made(FORGETFUL), TALK)
    strict = "{{ raise_exception('no system') if messages[0]['role'] == 'system' else '' }}" + PLAIN
    with pytest.raises(DataError, match="line 1: the tokenizer's chat template cannot spell it: no system"):
        encoded(made(strict), TALK)
    with pytest.raises(DataError, match=r"need a chat template, and beside this tokenizer is none"):
        encoded(made(None), TALK)
    config = configured(tmp_path, tmp_path / "x", prompt="{source} =")
    with pytest.raises(ConfigError, match=r"finetune\.prompt is given, and conversations"):
        validate(config, 1)
    other = config.finetune.model_copy(update={"task": "tagging", "columns": ColumnsConfig(messages="talk")})
    with pytest.raises(
        ConfigError, match=r"columns\.messages is a conversation, for finetune\.task=sequence_to_sequence"
    ):
        validate(config.model_copy(update={"finetune": other}), 1)
