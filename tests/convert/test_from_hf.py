"""Models from Hugging Face: what is done with files of every form, and with those that are wrong."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from random_models import random_llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.convert.weights import Weights
from bigtrain.errors import ConversionError, UserError

TOOL = Path(__file__).parents[2] / "tools" / "convert_from_hf.py"
Change = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path, hf_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Llama in several files, with its tokenizer."""
    folder = tmp_path / "llama"
    random_llama(num_key_value_heads=2).save_pretrained(folder, max_shard_size="60KB")
    hf_tokenizer.save_pretrained(folder)
    return folder


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def in_one_file(folder: Path) -> dict[str, torch.Tensor]:
    """Its weights, and the folder without any."""
    weights = whole(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    return weights


def exported(folder: Path, tmp_path: Path, **options: Any) -> dict[str, torch.Tensor]:
    """In and out again."""
    convert_from_hf(folder, tmp_path / "here", verify=False, **options)
    convert_to_hf(tmp_path / "here", tmp_path / "again", verify=False)
    return whole(tmp_path / "again")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


# --------------------------------------------------------------------------------------------- what can be read


def test_several_files_and_all_that_lies_beside_them(folder: Path, tmp_path: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 3
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 0], "temperature": 0.6}')
    assert_equal(exported(folder, tmp_path), whole(folder))
    here, again = tmp_path / "here", tmp_path / "again"
    assert yaml.safe_load((here / "model.yaml").read_text())["checkpoint"]["initialize_from"] == str(here)
    tokenizer = AutoTokenizer.from_pretrained(again)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages }}"
    assert json.loads((again / "generation_config.json").read_text())["temperature"] == 0.6
    assert AutoModelForCausalLM.from_pretrained(again).config.eos_token_id == [1, 0]
    card = (again / "README.md").read_text()
    assert "**Not verified** (`--no-verify`)" in card
    assert find_checkpoint(here).origin["sha256"] in card


def test_the_certificate_is_in_the_card(folder: Path, tmp_path: Path) -> None:
    convert_from_hf(folder, tmp_path / "here")
    made = convert_to_hf(tmp_path / "here", tmp_path / "again")
    assert made.parity is not None
    parity = json.loads((tmp_path / "again" / "parity.json").read_text())
    assert parity["tokenizer_sha256"]
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= set(parity["files"])
    card = (tmp_path / "again" / "README.md").read_text()
    assert made.parity.describe() in card
    assert parity["source_sha256"] in card


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_one_file(name: str, folder: Path, tmp_path: Path) -> None:
    weights = in_one_file(folder)
    if name.endswith("bin"):
        torch.save(weights, folder / name)
    else:
        save_file(weights, folder / name)
    assert_equal(exported(folder, tmp_path), weights)


def test_the_vocabulary_is_padded_on_the_way_in_and_cut_on_the_way_out(folder: Path, tmp_path: Path) -> None:
    convert_from_hf(folder, tmp_path / "here", vocab_size=512)
    weights = Weights(find_checkpoint(tmp_path / "here"))
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        rows = weights.read(name)
        assert rows.shape[0] == 512
        assert rows[439].any()
        assert not rows[440:].any()
    made = convert_to_hf(tmp_path / "here", tmp_path / "again")
    assert made.padded_rows_removed == 72
    assert made.parity is not None
    assert made.parity.padded_rows_removed == 72
    assert_equal(whole(tmp_path / "again"), whole(folder))


def test_an_old_gpt2_without_its_bodys_name_and_with_its_masks(
    hf_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "gpt2"
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=440, **shape))
    model.save_pretrained(folder)
    hf_tokenizer.save_pretrained(folder)
    weights = in_one_file(folder)
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in (0, 1)}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    assert_equal(exported(folder, tmp_path), weights)


def test_a_tied_output_layer_may_be_in_the_files_if_it_is_the_embedding(
    hf_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "tied"
    random_llama(tie_word_embeddings=True).save_pretrained(folder)
    hf_tokenizer.save_pretrained(folder)
    weights = in_one_file(folder)
    output = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file({**weights, **output}, folder / "model.safetensors")
    assert_equal(exported(folder, tmp_path), weights)
    output["lm_head.weight"][3, 1] += 1
    save_file({**weights, **output}, folder / "model.safetensors")
    refused(folder, tmp_path, "tie_word_embeddings is true, but lm_head.weight is not equal to model.embed_tokens")


def test_a_model_without_a_tokenizer_is_compared_on_bytes(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    parity = convert_from_hf(folder, tmp_path / "here").parity
    assert parity is not None
    assert parity.tokenizer_sha256 is None
    with pytest.raises(ConversionError, match="name the tokenizer"):
        convert_to_hf(tmp_path / "here", tmp_path / "again")


# ---------------------------------------------------------------------------------------------------- mistakes


def refused(folder: Path, tmp_path: Path, match: str, error: type[UserError] = ConversionError, **options: Any) -> None:
    """The conversion raises, and leaves everything as it was."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=match):
        convert_from_hf(folder, tmp_path / "no", **options)
    assert sorted(tmp_path.rglob("*")) == before


def config(**changed: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **changed}))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def changed(folder: Path) -> None:
        content = in_one_file(folder)
        change(content)
        save_file(content, folder / "model.safetensors")

    return changed


def pickled(content: Any) -> Change:
    def change(folder: Path) -> None:
        in_one_file(folder)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))

    return change


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def remove(pattern: str) -> Change:
    def change(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return change


def cut(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-9])


def one_more_in_a_file(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file({**load_file(file), "model.extra": torch.ones(2)}, file)


NORM = "model.layers.1.input_layernorm.weight"
MISTAKES: dict[str, tuple[Change, str]] = {
    "no configuration": (remove("config.json"), "holds no config.json"),
    "a family that is not supported": (config(model_type="mamba"), r"'mamba' is not supported; .*Llama \(llama\), Mis"),
    "no family": (config(model_type=None), "names no model_type"),
    "biases that a Llama has not": (config(attention_bias=True), "attention_bias is True, and the Llama models here"),
    "frequencies that change": (
        config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "config.json: rope_scaling is .*",
    ),
    "a part of each head turned": (config(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "an activation that is not known": (config(hidden_act="mish"), "hidden_act is 'mish', which model.hidden_act"),
    "quantized": (config(quantization_config={"bits": 4}), "quantization_config is set"),
    "a layer more": (config(num_hidden_layers=4), r"lacks model.layers.3.input_layernorm.weight, .* and 5 more"),
    "a layer less": (config(num_hidden_layers=2), r"holds model.layers.2.input_layernorm.weight, .* takes"),
    "a file that is not there": (remove("model-00002*"), "names model-00002-of-.*, and .* has no such file"),
    "no weights": (remove("*.safetensors*"), "holds no weights"),
    "a file cut off": (cut, r"model-00002-of-\d+.safetensors is damaged"),
    "a tensor that the index does not name": (one_more_in_a_file, "holds model.extra, which the index does not name"),
    "a tensor missing": (weights(lambda w: w.pop(NORM)), f"lacks {NORM}, of which the model is made"),
    "a tensor too many": (weights(lambda w: w.update(extra=torch.ones(2))), "holds extra, which no row of the map of"),
    "another shape": (
        weights(lambda w: w.update({NORM: torch.ones(47)})),
        r"norm.weight is \(47,\), and config.json makes.*48",
    ),
    "another type": (weights(lambda w: w.update({NORM: torch.ones(48).int()})), f"{NORM} is of type I32"),
    "a vocabulary of another size": (
        config(vocab_size=450),
        r"embed_tokens.weight is \(440, 48\), and .*450",
    ),
    "a pickle that executes": (pickled(Malicious()), "cannot be read as pickled weights and nothing else"),
    "a pickle of something else": (pickled({"a": 1}), "pytorch_model.bin"),
}


@pytest.mark.parametrize(("change", "match"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_wrong_is_said_and_leaves_nothing_behind(
    change: Change, match: str, folder: Path, tmp_path: Path
) -> None:
    change(folder)
    refused(folder, tmp_path, match)
    assert not Path("executed").exists()


def test_wrong_weights_are_found_by_what_the_model_says(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("bigtrain.convert.mapping.Cut.into", lambda *_: None)
    refused(folder, tmp_path, "differs from BigTrain's")


def test_outputs_and_options_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", tmp_path, "nothing: no such folder")
    refused(folder, tmp_path, "vocab_size is 400, and the model has 440 rows", vocab_size=400)
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "thesis.txt").write_text("precious")
    refused(folder, tmp_path, "no exists already")


def test_more_than_the_memory_is_not_compared_in_silence(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("bigtrain.convert.verify._available", lambda: 1e9)
    refused(folder, tmp_path, r"to compare the models in float32 takes about 2 GB of memory, and 1 GB are free here")
    assert convert_from_hf(folder, tmp_path / "here", verify=False).parity is None


def test_the_tool_ends_with_one_line_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    config(model_type="mamba")(folder)
    done = subprocess.run([sys.executable, TOOL, folder, tmp_path / "no"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: model_type 'mamba' is not supported")
    assert not (tmp_path / "no").exists()
