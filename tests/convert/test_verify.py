"""The proof of a conversion finds what is wrong with one."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import LIBRARY, SHAPES, random_llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.config import ModelConfig
from bigtrain.convert import families
from bigtrain.convert.families.llama import LLAMA
from bigtrain.convert.mapping import GATE, KEY, QUERY, UP, VALUE, WHOLE, Cut, key_rows, query_rows
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.convert.verify import verify_export
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import ConversionError, DataError
from bigtrain.prepare.prepare import prepare


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_exported_model_says_what_the_trained_one_says(
    shape: dict[str, Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    made = convert_to_hf(make_run(random_llama(**shape)), tmp_path / "out", verify=True)
    written = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert written["float32"]["largest_difference"] < 1e-5 < written["float32"]["largest_logit"]
    assert written["float32"]["greedy_agreement"] == 1.0
    assert abs(written["float32"]["kl_divergence"]) < 1e-9
    assert (written["step"], written["dtype"], written["tokens"]) == (7, "float32", 4 * 128)
    assert "standard library" in written["text"]
    assert made.parity is not None
    assert f"{written['float32']['largest_difference']:.2e}" in made.describe()


def test_a_launchers_environment_is_neither_heeded_nor_changed(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    before = dict(os.environ)
    convert_to_hf(make_run(random_llama()), tmp_path / "out", verify=True)
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()


def test_saved_in_bfloat16_the_map_is_still_proven_in_float32(make_run: Callable[..., Path], tmp_path: Path) -> None:
    parity = convert_to_hf(make_run(random_llama()), tmp_path / "out", dtype="bfloat16", verify=True).parity
    assert parity is not None
    assert parity.float32.largest_difference < 1e-5
    assert 1e-3 < parity.as_saved.largest_difference < 1
    assert 0 < parity.as_saved.kl_divergence < 0.01
    assert "in bfloat16" in parity.describe()


def test_the_figures_are_those_of_the_logits(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """bfloat16's cost, computed anew from the two models of `transformers`."""
    model, text = random_llama(), tmp_path / "text.py"
    run = make_run(model)
    text.write_text((LIBRARY / "bisect.py").read_text()[:1500])
    parity = convert_to_hf(run, tmp_path / "out", dtype="bfloat16", verify=True, text=text).parity
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    ids = [*load_tokenizer(run / "tokenizer").encode(text.read_text()), 2][: 4 * 128]
    assert parity is not None
    assert parity.tokens == len(ids)
    with torch.no_grad():
        cuts = torch.tensor(ids).split(128)
        ours = torch.cat([model(cut[None]).logits[0] for cut in cuts])
        theirs = torch.cat([saved(cut[None]).logits[0].float() for cut in cuts])
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (ours, theirs))
    expected = {
        "largest_difference": (ours - theirs).abs().max(),
        "mean_difference": (ours - theirs).abs().mean(),
        "largest_logit": ours.abs().max(),
        "kl_divergence": torch.distributions.kl_divergence(p, q).mean(),
        "greedy_agreement": (ours.argmax(-1) == theirs.argmax(-1)).float().mean(),
    }
    for name, value in expected.items():
        assert getattr(parity.as_saved, name) == pytest.approx(float(value), rel=1e-3, abs=1e-6), name


def test_the_text_is_the_runs_held_out_data(
    make_run: Callable[..., Path], tokenizer_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    for name in ("this", "heapq", "csv", "bisect", "textwrap", "ast"):
        (tmp_path / "text" / name).write_text((LIBRARY / f"{name}.py").read_text()[:3000])
    prepare([tmp_path / "text"], tmp_path / "data", tokenizer_path, validation_fraction=0.5, workers=1)
    held_out = tmp_path / "data" / "validation"
    parity = convert_to_hf(make_run(random_llama(), validation=held_out), tmp_path / "out", verify=True).parity
    assert parity is not None
    assert (parity.text, parity.float32.greedy_agreement) == (str(held_out), 1.0)


def turned(rows: Callable[[ModelConfig], np.ndarray]) -> Cut:
    """Each head of 12 in the other rotary layout: pairs of neighbours in place of halves."""
    return Cut(lambda model: rows(model).reshape(-1, 2, 6).swapaxes(1, 2).ravel())


WRONG_MAPS = {
    "key and value": {
        "decoder.layers.self_attention.linear_qkv.weight": {
            "model.layers.{layer}.self_attn.q_proj.weight": QUERY,
            "model.layers.{layer}.self_attn.k_proj.weight": VALUE,
            "model.layers.{layer}.self_attn.v_proj.weight": KEY,
        }
    },
    "queries not by groups": {
        "decoder.layers.self_attention.linear_qkv.weight": {
            "model.layers.{layer}.self_attn.q_proj.weight": Cut(lambda model: np.arange(48)),
            "model.layers.{layer}.self_attn.k_proj.weight": Cut(lambda model: np.arange(48, 72)),
            "model.layers.{layer}.self_attn.v_proj.weight": Cut(lambda model: np.arange(72, 96)),
        }
    },
    "gate and up": {
        "decoder.layers.mlp.linear_fc1.weight": {
            "model.layers.{layer}.mlp.gate_proj.weight": UP,
            "model.layers.{layer}.mlp.up_proj.weight": GATE,
        }
    },
    "norms": {
        "decoder.layers.input_layernorm.weight": {"model.layers.{layer}.post_attention_layernorm.weight": WHOLE},
        "decoder.layers.pre_mlp_layernorm.weight": {"model.layers.{layer}.input_layernorm.weight": WHOLE},
    },
    "embedding and output": {
        "embedding.word_embeddings.weight": {"lm_head.weight": WHOLE},
        "output_layer.weight": {"model.embed_tokens.weight": WHOLE},
    },
    "heads turned": {
        "decoder.layers.self_attention.linear_qkv.weight": {
            "model.layers.{layer}.self_attn.q_proj.weight": turned(query_rows),
            "model.layers.{layer}.self_attn.k_proj.weight": turned(key_rows),
            "model.layers.{layer}.self_attn.v_proj.weight": VALUE,
        }
    },
}


@pytest.mark.parametrize("change", WRONG_MAPS.values(), ids=WRONG_MAPS)
def test_a_wrong_map_is_found_and_leaves_nothing_behind(
    change: dict[str, Any], make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(random_llama(num_key_value_heads=2))
    before = sorted(tmp_path.iterdir())
    wrong = replace(LLAMA, weights={**LLAMA.weights, **change})
    monkeypatch.setattr(families, "FAMILIES", (wrong,))
    with pytest.raises(ConversionError, match=r"differs from BigTrain's: logits by up to .*, allowed are"):
        convert_to_hf(run, tmp_path / "out", verify=True)
    assert sorted(tmp_path.iterdir()) == before


def change_config(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))

    return change


def change_weight(by: float) -> Callable[[Path], None]:
    """One element of one matrix of one layer."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.mlp.down_proj.weight"][17, 5] += by
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    "tamper",
    [
        change_weight(0.01),
        change_weight(float("nan")),
        change_config("rope_theta", 10001.0),
        change_config("rms_norm_eps", 2e-5),
        change_config("num_hidden_layers", 2),
        change_config("hidden_act", "gelu"),
    ],
    ids=["a weight", "a NaN", "rope_theta", "rms_norm_eps", "a layer less", "activation"],
)
def test_a_folder_tampered_with_is_found(
    tamper: Callable[[Path], None], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(random_llama())
    convert_to_hf(run, tmp_path / "out", verify=False)
    tamper(tmp_path / "out")
    with pytest.raises(ConversionError, match="differs from BigTrain's"):
        verify_export(find_checkpoint(run), tmp_path / "out", load_tokenizer(run / "tokenizer"))
    assert not (tmp_path / "out" / "parity.json").exists()


def test_a_tokenizer_that_gives_other_ids_is_found(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(random_llama())
    convert_to_hf(run, tmp_path / "out", verify=False)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:60]
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConversionError, match=r"gives other ids than .*tokenizer.model, first at token \d+"):
        verify_export(find_checkpoint(run), tmp_path / "out", load_tokenizer(run / "tokenizer"))


def test_a_text_that_cannot_be_read(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(random_llama())
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, match in (("nothing", "cannot be read"), ("empty", "holds no text"), ("binary", "cannot be read")):
        with pytest.raises(DataError, match=f"{name}: {match}"):
            convert_to_hf(run, tmp_path / "out", verify=True, text=tmp_path / name)
        assert not (tmp_path / "out").exists()
