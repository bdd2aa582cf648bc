"""A fine-tuned run becomes the model of `transformers` with the same head, labels and frame of special tokens.

The checkpoints are written from models of `transformers`, by a map of their own.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from transformers import AutoTokenizer, PreTrainedModel

from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.errors import ConversionError
from bigtrain.prepare.train_tokenizer import train_sentencepiece, train_wordpiece

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import plain
import plain_bert

LABELS = ["O", "B-name", "I-name"]
FIRST, SECOND = "def parse(self): return 42", "import json"
KINDS = {
    "classification": "SequenceClassification",
    "regression": "SequenceClassification",
    "tagging": "TokenClassification",
    "question_answering": "QuestionAnswering",
}
CASES = [
    *(("Bert", task) for task in KINDS),
    *(("Llama", task) for task in KINDS),
    *(("Roberta", task) for task in ("classification", "tagging")),
]
SPECIAL = ["<pad>", "<mask>"]
PADDING = 3
"""The id of the first of these in SentencePiece's vocabulary, after `<unk>`, `<s>` and `</s>`."""
SHAPE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SECTIONS: dict[str, dict[str, Any]] = {
    "Llama": {"norm_eps": 1e-6, "max_position_embeddings": 128, "tie_word_embeddings": True},
    "Bert": {
        "architecture": "bert",
        "max_position_embeddings": 128,
        "position_embedding": "learned",
        "normalization": "layernorm",
        "norm_eps": 1e-12,
        "hidden_act": "gelu",
        "gated_mlp": False,
        "linear_bias": True,
        "tie_word_embeddings": True,
    },
}
SECTIONS["Roberta"] = {
    **SECTIONS["Bert"],
    "max_position_embeddings": 132,
    "position_offset": PADDING + 1,
    "type_vocab_size": 1,
    "add_pooling_layer": True,  # as a model without a head comes in
}


def random_model(family: str, task: str) -> PreTrainedModel:
    """A tiny one in which nothing is of a value that would hide that it is not used."""
    torch.manual_seed(5)
    section = SECTIONS[family]
    options = {"max_position_embeddings": section["max_position_embeddings"], "tie_word_embeddings": True}
    if family == "Roberta":
        options |= {"type_vocab_size": 1, "pad_token_id": PADDING}
    classes = task in ("classification", "tagging")
    options |= {"id2label": dict(enumerate(LABELS))} if classes else {"num_labels": 1 if task == "regression" else 2}
    config = getattr(hf, f"{family}Config")(**SHAPE, **options, initializer_range=0.2)
    made: PreTrainedModel = getattr(hf, f"{family}For{KINDS[task]}")(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def own_weights(model: Any) -> dict[str, torch.Tensor]:
    """Under Megatron-core's names; the head's are `head.*`."""
    body, config = model.base_model, model.config
    if config.model_type == "llama":
        found = plain.megatron_weights(SimpleNamespace(config=config, model=body))  # type: ignore[arg-type]
    else:
        unused = hf.BertForPreTraining(config).cls
        found = plain_bert.megatron_weights(SimpleNamespace(config=config, bert=body, cls=unused))  # type: ignore[arg-type]
        found = {name: value for name, value in found.items() if name.startswith(("embedding", "encoder", "pooler"))}
    head = next(getattr(model, name) for name in ("score", "classifier", "qa_outputs") if hasattr(model, name))
    if hasattr(head, "out_proj"):
        found |= {f"pooler.dense.{name}": value.detach() for name, value in head.dense.named_parameters()}
        head = head.out_proj
    return found | {f"head.{name}": value.detach() for name, value in head.named_parameters()}


@pytest.fixture
def run_of(sources: list[str], tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a run's folder around a fine-tuned model."""

    def make(family: str, task: str, model: PreTrainedModel, **changed: Any) -> Path:
        run = tmp_path / "run"
        section = {**SHAPE, **SECTIONS[family], **changed}
        (run / "tokenizer").mkdir(parents=True)
        if family == "Bert":
            train_wordpiece(sources, run / "tokenizer", 400)
        else:
            special = SPECIAL if family == "Roberta" else []
            train_sentencepiece(sources, run / "tokenizer" / "tokenizer.model", 400, special_tokens=special)
        plain.write_checkpoint(own_weights(model), section, run / "best" / "step-00000003")
        named = {"labels": LABELS} if task in ("classification", "tagging") else {}
        config = {
            "model": section,
            "finetune": {"task": task, "train": "examples.jsonl", **named},
            "training": {"output_dir": str(run), "steps": 3, "global_batch_size": 2, "sequence_length": 64},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        return run

    return make


@pytest.mark.parametrize(("family", "task"), CASES)
def test_the_head_goes_along(family: str, task: str, run_of: Callable[..., Path], tmp_path: Path) -> None:
    model = random_model(family, task)
    made = convert_to_hf(run_of(family, task, model), tmp_path / "out")
    assert made.parity is not None
    assert made.parity.float32.largest_difference < 1e-5 < made.parity.float32.largest_logit

    kind = getattr(hf, f"AutoModelFor{KINDS[task]}")
    loaded, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(report.values())
    there, expected = loaded.state_dict(), model.state_dict()
    assert there.keys() == expected.keys()
    assert all(torch.equal(there[name], tensor) for name, tensor in expected.items())
    if task in ("classification", "tagging"):
        assert loaded.config.id2label == dict(enumerate(LABELS))
        assert loaded.config.label2id == {label: i for i, label in enumerate(LABELS)}

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    end = tokenizer.eos_token if family == "Llama" else tokenizer.sep_token
    spelled = tokenizer.convert_ids_to_tokens(tokenizer(FIRST, SECOND)["input_ids"])
    assert spelled.count(end) == (3 if family == "Roberta" else 2)
    assert spelled[-1] == end
    assert (spelled[0] == tokenizer.cls_token) == (family != "Llama")
    # Each text of a batch is judged as if it were alone.
    texts = [FIRST, SECOND] if task != "question_answering" else [(SECOND, FIRST), (FIRST, SECOND)]
    names = ["logits"] if task != "question_answering" else ["start_logits", "end_logits"]
    with torch.no_grad():
        together = loaded.eval()(**tokenizer(texts, padding=True, return_tensors="pt"))
        for i, text in enumerate(texts):
            alone = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
            said = model(**alone)
            for name in names:
                length = getattr(said, name).shape[1]
                assert torch.allclose(getattr(together, name)[i, :length], getattr(said, name)[0], atol=1e-5)


def test_a_head_that_transformers_does_not_have(run_of: Callable[..., Path], tmp_path: Path) -> None:
    model = random_model("Llama", "question_answering")
    run = run_of("Llama", "question_answering", model, norm_placement="after", qk_norm="projection")
    with pytest.raises(ConversionError, match="transformers has no model of OLMo-2 for question answering"):
        convert_to_hf(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("model", "finetune", "match"),
    [
        ({"position_embedding": "rope"}, {}, "RoFormerForSequenceClassification of transformers has another head"),
        ({}, {"classifier_pooling": "mean"}, "BertForSequenceClassification of transformers reads the first token"),
    ],
)
def test_a_head_that_is_another_in_transformers(
    model: dict[str, Any], finetune: dict[str, Any], match: str, run_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_of("Bert", "classification", random_model("Bert", "classification"), **model)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["finetune"] |= finetune
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConversionError, match=match):
        convert_to_hf(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_padding_token_that_positions_do_not_begin_after(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = run_of("Roberta", "tagging", random_model("Roberta", "tagging"), position_offset=2)
    with pytest.raises(ConversionError, match=r"model\.position_offset \(2\) makes 1, and .* has 3"):
        convert_to_hf(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
