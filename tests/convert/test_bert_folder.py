"""BERT comes in from `transformers` and goes out again as it was, with and without the sentence objective's head."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, PreTrainedModel

from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.errors import ConversionError
from bigtrain.prepare.train_tokenizer import train_wordpiece


def save(kind: type[PreTrainedModel], sources: list[str], there: Path) -> None:
    """A tiny random BERT with its tokenizer, in which nothing is of a value that would hide that it is not used."""
    train_wordpiece(sources, there, 400)
    config = BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(1)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(there)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_bert_comes_in_and_goes_out_as_it_was(kind: type[PreTrainedModel], sources: list[str], tmp_path: Path) -> None:
    there, again = tmp_path / "there", tmp_path / "again"
    save(kind, sources, there)
    taken = convert_from_hf(there, tmp_path / "here").parity
    made = convert_to_hf(tmp_path / "here", again).parity
    assert taken is not None
    assert made is not None
    assert taken.float32.largest_difference < 1e-5 < 1 < taken.float32.largest_logit
    assert made.float32.largest_difference < 1e-5
    before, after = (load_file(folder / "model.safetensors") for folder in (there, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert BertConfig.from_pretrained(again).architectures == [kind.__name__]
    text = "def parse(self): return 42"
    ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for folder in (there, again)]
    assert ids[0] == ids[1]


def test_a_bert_without_a_head_comes_in_to_be_fine_tuned(sources: list[str], tmp_path: Path) -> None:
    """As those of sentence encoders are saved: no `bert.` before the names, and nothing that predicts tokens."""
    save(BertModel, sources, tmp_path / "there")
    taken = convert_from_hf(tmp_path / "there", tmp_path / "here")
    assert taken.parity is not None
    assert taken.parity.float32.largest_difference < 1e-4 * taken.parity.float32.largest_logit
    there = load_file(tmp_path / "there" / "model.safetensors")
    assert taken.parameters == sum(tensor.numel() for tensor in there.values())
    with pytest.raises(ConversionError, match=r"no weight of the checkpoint fills cls\.predictions\.bias"):
        convert_to_hf(tmp_path / "here", tmp_path / "again")
