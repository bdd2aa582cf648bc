"""Adapters of ours in families that keep several of our matrices in one, or turned: what `peft` makes of them, and what
a merge gives."""

import json
import re
import zlib
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.convert.adapted import convert_to_adapter
from bigtrain.convert.arriving import boxes_of, write_checkpoint
from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.own_model import own_model
from bigtrain.convert.source import model_config
from bigtrain.convert.weights import Weights
from bigtrain.errors import ConversionError

LORA = {"r": 4, "lora_alpha": 6.0, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj"]}
LAYERS = "decoder.layers."
SAVED = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight")
"""As `peft` names an adapter of a Llama's."""


def adapted(there: Path, run: Path) -> None:
    """A copy of a checkpoint with random adapters beside its weights."""
    source = find_checkpoint(there)
    weights, model = Weights(source), model_config(source)
    heads = model.num_attention_heads * model.head_size
    adapters = {
        "self_attention.linear_qkv.q_proj": (heads, model.hidden_size),
        "self_attention.linear_qkv.v_proj": (model.kv_heads * model.head_size, model.hidden_size),
        "self_attention.linear_proj.o_proj": (model.hidden_size, heads),
        "mlp.linear_fc1.up_proj": (model.ffn_size, model.hidden_size),
    }
    shapes = dict(weights.shapes)
    for name, (rows, columns) in adapters.items():
        shapes[f"{LAYERS}{name}.lora_A.weight"] = (model.num_hidden_layers, LORA["r"], columns)
        shapes[f"{LAYERS}{name}.lora_B.weight"] = (model.num_hidden_layers, rows, LORA["r"])

    def values(box: tuple[str, tuple[int, ...]]) -> Tensor:
        name, index = box
        if name in weights.shapes:
            return weights.read(name, index)
        seed = torch.Generator().manual_seed(zlib.crc32(f"{name}{index}".encode()))
        return 0.3 * torch.randn(shapes[name][len(index) :], generator=seed)

    made = write_checkpoint(run, model, shapes, boxes_of(shapes), values, origin=lambda: source.origin)
    marker = json.loads((made / "complete.json").read_text())
    (made / "complete.json").write_text(json.dumps({**marker, "trained": {"lora": LORA}}))


@pytest.mark.parametrize("name", ["gpt2", "phi-3", "llama"])
def test_peft_makes_of_them_what_a_merge_gives(name: str, tmp_path: Path) -> None:
    FAMILIES[name].build().save_pretrained(tmp_path / "model")
    convert_from_hf(tmp_path / "model", tmp_path / "here", verify=False)
    run = tmp_path / "run"
    adapted(tmp_path / "here", run)
    convert_to_adapter(run, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(60).view(2, 30)
    positions = torch.arange(30).expand(2, 30)
    with torch.no_grad():
        before = base(ids).logits
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
        with own_model(find_checkpoint(run)) as model:
            ours = model(ids, positions, None)[..., : theirs.shape[-1]]
    assert (theirs - before).abs().max() > 0.01 * before.abs().max()
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    if name == "llama":  # a mistake in where modules lie would be made twice, but for the names in the file
        saved, weights = load_file(tmp_path / "adapter/adapter_model.safetensors"), Weights(find_checkpoint(run))
        for key in [*saved]:
            named = SAVED.fullmatch(key)
            assert named is not None, key
            layer, module, half = named.groups()
            (ours,) = (matrix for matrix, modules in weights.adapted.items() if module in modules)
            assert torch.equal(saved[key], weights.adapter(ours, module, int(layer))["AB".index(half)]), key
    with pytest.raises(ConversionError, match=r"has no adapters: finetune\.lora was not set when it was trained"):
        convert_to_adapter(tmp_path / "here", tmp_path / "no")
