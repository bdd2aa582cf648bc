"""Models of every family come in from `transformers` and go out again as they were."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.to_hf import convert_to_hf

WORDLESS = {"_name_or_path", "architectures", "dtype", "use_cache", "transformers_version"}
"""Keys of a configuration that say nothing of the model."""

SAID_OTHERWISE = {"rope_scaling", "layer_types", "intermediate_size", "moe_intermediate_size", "router_aux_loss_coef"}


@pytest.fixture
def saved(tmp_path: Path, hf_tokenizer: PreTrainedTokenizerFast) -> Callable[[str, torch.dtype], Path]:
    """A function that saves a family's model as `transformers` does, with a tokenizer."""

    def save(name: str, dtype: torch.dtype) -> Path:
        folder = tmp_path / "there"
        FAMILIES[name].build().to(dtype).save_pretrained(folder)
        hf_tokenizer.save_pretrained(folder)
        return folder

    return save


def config_of(folder: Path) -> dict[str, object]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {key: value for key, value in model.config.to_dict().items() if key not in WORDLESS}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_comes_in_and_goes_out_as_it_was(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved(name, torch.float32)
    taken = convert_from_hf(folder, tmp_path / "here").parity
    made = convert_to_hf(tmp_path / "here", tmp_path / "again")

    assert taken is not None
    assert made.parity is not None
    assert taken.float32.largest_difference < 1e-5 < taken.float32.largest_logit
    assert made.parity.float32.largest_difference < 1e-5
    section = FAMILIES[name].section
    assert taken.embeddings_tied == made.parity.embeddings_tied == section.get("tie_word_embeddings", False)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert config_of(tmp_path / "again") == config_of(folder)
    marker = json.loads((tmp_path / "here" / "checkpoints" / "step-00000000" / "complete.json").read_text())
    same = [key for key in section if key not in SAID_OTHERWISE]
    assert {key: marker["model"][key] for key in same} == {key: section[key] for key in same}


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bfloat16_too(name: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved(name, torch.bfloat16)
    convert_from_hf(folder, tmp_path / "here", verify=False)
    convert_to_hf(tmp_path / "here", tmp_path / "again", dtype="bfloat16", verify=False)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert {key: value.dtype for key, value in before.items()} == {key: value.dtype for key, value in after.items()}
    assert all(torch.equal(before[key], after[key]) for key in before)
