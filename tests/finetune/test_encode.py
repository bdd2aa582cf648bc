"""Examples as tokens, against the tokenizers of `transformers`; what is read and refused before any training."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from bigtrain.config import Config, parse_config, validate
from bigtrain.data.examples import Example, Examples
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import ConfigError, DataError
from bigtrain.finetune.decode import decode
from bigtrain.finetune.encode import Encoded, Encoder
from bigtrain.finetune.inputs import open_task, resolved
from bigtrain.finetune.load import load_task_config
from bigtrain.prepare.train_tokenizer import train_wordpiece

SENTENCE = "The Amazon rainforest , 5,500,000 km² , is drained by the unbelievably long Amazon".split()  # noqa: SIM905

Configured = Callable[..., Config]


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = " ".join(SENTENCE) + " What covers how much land in which country and why not"
    return train_wordpiece([text, text.lower()], tmp_path_factory.mktemp("wordpiece"), 90)


@pytest.fixture(scope="module")
def configured(wordpiece: Path) -> Configured:
    def make(task: str, length: int = 64, **finetune: Any) -> Config:
        return parse_config(
            {
                "model": {
                    "architecture": "bert",
                    "vocab_size": 128,
                    "hidden_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "max_position_embeddings": 64,
                    "position_embedding": "learned",
                },
                "tokenizer": {"path": str(wordpiece)},
                "finetune": {"task": task, "train": "train", **finetune},
                "training": {"output_dir": "run", "steps": 1, "global_batch_size": 2, "sequence_length": length},
            }
        )

    return make


def encoded(config: Config, *examples: Example, labels: Any = ()) -> Encoded:
    tokenizer = load_tokenizer(config.tokenizer.path or "")
    return Encoder(config, tokenizer, labels).encode(Examples(Path("file"), list(examples)))


def theirs(wordpiece: Path) -> PreTrainedTokenizerFast:
    path = wordpiece / "tokenizer.json" if wordpiece.is_dir() else wordpiece
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


def test_pairs_are_framed_and_the_longer_text_is_cut(configured: Configured, wordpiece: Path) -> None:
    tokenizer = theirs(wordpiece)
    cls, sep = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    texts = "the long Amazon is drained by the rainforest", "long"
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    (item,) = encoded(configured("classification"), Example("row 1", *texts, label="b"), labels=["a", "b"]).items
    assert item.ids.tolist() == [cls, *first, sep, *second, sep]
    assert (item.first, item.speaks, item.labels.tolist(), item.weights.tolist()) == (len(first) + 2, 0, [1], [1.0])
    room = 3 + 4 + len(second)
    cut = encoded(configured("classification", room), Example("row 1", *texts, label="b"), labels=["a", "b"])
    assert cut.items[0].ids.tolist() == [cls, *first[:4], sep, *second, sep]
    assert cut.notes == [f"file: 1 of 1 examples are longer than training.sequence_length ({room}) and were cut"]


def test_a_word_is_tagged_at_its_first_token(configured: Configured, wordpiece: Path) -> None:
    """As `transformers` aligns words that are given one by one."""
    tags = ["B-X" if word[0].isupper() else "O" for word in SENTENCE]
    made = encoded(
        configured("tagging"), Example("line 1", tokens=tuple(SENTENCE), tags=tuple(tags)), labels=["O", "B-X"]
    )
    (item,) = made.items
    found = theirs(wordpiece)(SENTENCE, is_split_into_words=True, add_special_tokens=False)
    words = [None, *found.word_ids(), None]
    firsts = [words.index(word) for word in range(len(SENTENCE))]
    assert item.ids[1:-1].tolist() == found["input_ids"]
    assert item.places.tolist() == firsts
    assert np.flatnonzero(item.weights).tolist() == firsts
    assert [["O", "B-X"][label] for label in item.labels[firsts]] == tags
    # what a head says at these places are the words' tags, those of words that were cut are O
    said = np.eye(2, dtype=np.float32)[item.labels]
    (row,) = decode(configured("tagging"), made, [said], ["O", "B-X"])
    assert row["predicted"] == row["tags"] == tags
    short = encoded(configured("tagging", 10), Example("line 1", tokens=tuple(SENTENCE), tags=tuple(tags)))
    assert short.notes == [
        "file: 1 of 1 examples are longer than training.sequence_length (10) and were cut: words beyond are not tagged"
    ]


def test_windows_of_a_context(configured: Configured) -> None:
    """Each has the question; together they cover all; what they say is told in the context's own characters."""
    context = " ".join(SENTENCE * 3)
    answer = "unbelievably long"
    start = context.rindex(answer)
    from bigtrain.data.examples_squad import Answer

    config = configured("question_answering", 48, stride=8, unanswerable=True)
    example = Example("q1", context, "What is long", answers=(Answer(answer, start),))
    made = encoded(config, example)
    assert len(made.items) > 2
    assert all(len(item.ids) <= 48 for item in made.items)
    covered = {place for item in made.items for begin, end in item.spans for place in range(begin, end)}
    assert covered >= {place for place, char in enumerate(context) if char != " "}
    with_answer = [item for item in made.items if item.labels.tolist() != [0, 0]]
    assert with_answer
    for item in with_answer:
        first, last = item.labels.tolist()
        assert context[item.spans[first][0] : item.spans[last][1]] == answer
        assert item.spans[first][0] == start
    said = [9 * np.eye(len(item.ids), dtype=np.float32)[item.labels].T for item in made.items]
    (row,) = decode(config, made, said, ())
    assert (row["predicted"], row["answers"]) == (answer, [answer])
    nothing = [9 * np.eye(len(item.ids), dtype=np.float32)[[0, 0]].T for item in made.items]
    (row,) = decode(config, made, nothing, ())
    assert row["predicted"] == ""


def test_the_prompt_is_not_learned(tokenizer: Path, configured: Configured) -> None:
    config = configured("sequence_to_sequence", prompt="translate: {source} =>")
    config = config.model_copy(update={"model": config.model.model_copy(update={"architecture": "gpt"})})
    found = load_tokenizer(tokenizer)
    made = Encoder(config, found, ()).encode(Examples(Path("file"), [Example("row 1", "class", "def")]))
    (item,) = made.items
    prompt, target = found.encode("translate: class =>"), [*found.encode("def"), found.eos_id]
    assert [*item.ids.tolist(), int(item.labels[-1])] == [*prompt, *target]
    assert item.labels[item.weights > 0].tolist() == target


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_labels_are_checked_before_training(configured: Configured, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"text": "long", "label": name} for name in ("b", "a", "b")])
    output = {"training": configured("classification").training.model_copy(update={"output_dir": str(tmp_path)})}

    def opened(**finetune: Any) -> Any:
        config = configured("classification", **{"train": train, **finetune}).model_copy(update=output)
        return config, open_task(config)

    config, found = opened()
    assert (found.labels, resolved(config, found).finetune.labels) == (["a", "b"], ["a", "b"])
    _, weighted = opened(class_weights="balanced")
    assert [item.weights.item() for item in weighted.train.items] == [0.75, 1.5, 0.75]
    with pytest.raises(
        DataError, match=r"no example has the label 'c' of finetune\.labels, which could never be learned"
    ):
        opened(labels=["a", "b", "c"])
    with pytest.raises(DataError, match=r"has labels that finetune\.labels does not: 'b' \(2 times\)"):
        opened(labels=["a", "x"], train=write(tmp_path / "x.jsonl", [{"text": "t", "label": n} for n in "axbb"]))
    other = write(tmp_path / "dev.jsonl", [{"text": "long", "label": "neutral"}])
    with pytest.raises(DataError, match=r"dev\.jsonl: has labels that .*train\.jsonl does not: 'neutral'"):
        opened(validation=other)
    alike = write(tmp_path / "alike.jsonl", [{"text": "long", "label": "a"}])
    with pytest.raises(DataError, match="all examples have the same label, 'a': there is nothing to learn"):
        opened(train=alike)


def test_rules_of_the_configuration(configured: Configured, tmp_path: Path) -> None:
    def problems(task: str, **finetune: Any) -> str:
        with pytest.raises(ConfigError) as raised:
            validate(configured(task, **finetune), 1)
        return str(raised.value)

    assert "finetune.metric=pearson is none of finetune.task=classification; try loss, accuracy or f1" in problems(
        "classification", metric="pearson", validation="dev"
    )
    assert "finetune.patience (3) needs held-out examples" in problems("classification", patience=3)
    assert "finetune.train is missing" in problems("tagging", train=None)
    assert "finetune.labels is for classes and tags" in problems("regression", labels=["a", "b"])
    assert "finetune.prompt must have {source} once" in problems("sequence_to_sequence", prompt="x")
    assert "finetune.metric=bleu needs held-out examples" in problems("sequence_to_sequence", metric="bleu")
    assert "finetune.validation_texts is 0; leave it out" in problems(
        "sequence_to_sequence", metric="chrf", validation_texts=0, validation="dev"
    )
    assert "finetune.validation_texts (9) is for finetune.task=sequence_to_sequence" in problems(
        "tagging", validation_texts=9
    )
    assert "finetune.validation_texts (9) needs held-out examples" in problems(
        "sequence_to_sequence", validation_texts=9
    )
    bleu = configured("sequence_to_sequence", metric="bleu", validation="dev")
    assert bleu.finetune.texts_written == 200
    for parallel, experts, message in (
        ({"pipeline": 2, "virtual_pipeline": 2}, None, "interleaved chunks (parallel.virtual_pipeline=2)"),
        ({"tensor": 2, "sequence": True}, 4, "where experts lie on several processes; set parallel.tensor=1"),
    ):
        model = bleu.model.model_copy(update={"num_experts": experts, "num_hidden_layers": 4})
        layout = bleu.parallel.model_copy(update=parallel)
        with pytest.raises(ConfigError, match=re.escape(message)):
            validate(bleu.model_copy(update={"model": model, "parallel": layout}), 2)
    assert "finetune.freeze=1 says what else stays as it is" in problems("tagging", lora={}, freeze=1)
    assert "finetune.freeze (3) is more than the model's 1 layers" in problems("tagging", freeze=3)
    assert "finetune.freeze=all leaves a task's head" in problems("sequence_to_sequence", freeze="all")
    assert "finetune.classifier_pooling=mean is for finetune.task=classification or regression" in problems(
        "tagging", classifier_pooling="mean"
    )
    gateless = configured("tagging", lora={"target_modules": ["gate_proj"]})
    model = gateless.model.model_copy(update={"gated_mlp": False})
    with pytest.raises(
        ConfigError, match=r"target_modules has gate_proj, and without model\.gated_mlp there is no gate"
    ):
        validate(gateless.model_copy(update={"model": model}), 1)
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump({"finetune": {"task": "tagging"}, "checkpoint": {"initialize_from": str(tmp_path / "none")}})
    )
    with pytest.raises(Exception, match="none: no such folder"):
        load_task_config(path, [])
