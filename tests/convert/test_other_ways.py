"""Weights in and out beside Hugging Face: files of their own, Megatron-LM's checkpoints, means, LoRA adapters."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from random_models import megatron_weights, model_section, random_llama, write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from typer.testing import CliRunner

from bigtrain.checkpoint import catalog
from bigtrain.cli.convert import convert_app
from bigtrain.convert import weight_files
from bigtrain.convert.adapter import read_adapter, write_adapter
from bigtrain.convert.average import average
from bigtrain.convert.from_megatron import convert_from_megatron
from bigtrain.convert.merge import merge_adapter
from bigtrain.convert.own_model import own_model
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.convert.weight_files import convert_from_weights, convert_to_weights
from bigtrain.convert.weights import Weights
from bigtrain.errors import CheckpointError, ConversionError, UserError

VOCABULARY = 512
"""Rows that hold the tokens of the datasets that tests are given."""
IDS = torch.arange(60).reshape(2, 30) * 7 % 448


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint of a folder that a conversion made."""
    checkpoint = catalog.newest(folder / "checkpoints")
    assert checkpoint is not None
    weights = Weights(checkpoint)
    return {name: weights.read(name) for name in weights.shapes}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


# ------------------------------------------------------------------------------------------------- files of weights


def test_weights_go_out_and_come_back(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_llama(num_key_value_heads=2)
    run, expected = make_run(model), megatron_weights(model)
    monkeypatch.setattr(weight_files, "FILE_BYTES", 100_000)
    assert convert_to_weights(run, tmp_path / "folder").files > 3
    convert_to_weights(run, tmp_path / "weights.pt")

    # What others read of them.
    stacked = expected["decoder.layers.mlp.linear_fc2.weight"]
    whole = {name: tensor for file in tmp_path.glob("folder/*.safetensors") for name, tensor in load_file(file).items()}
    pickled = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert pickled["model"]["hidden_size"] == 48
    for found in (whole, pickled["weights"]):
        assert torch.equal(found["decoder.layers.2.mlp.linear_fc2.weight"], stacked[2])
        assert sum(tensor.numel() for tensor in found.values()) == sum(p.numel() for p in model.parameters())

    for number, source in enumerate(("folder", "weights.pt")):
        convert_from_weights(tmp_path / source, tmp_path / f"back-{number}")
        assert_equal(weights_of(tmp_path / f"back-{number}"), expected)
    assert (tmp_path / "back-0" / "tokenizer" / "tokenizer.model").is_file()


def test_weights_in_bfloat16(make_run: Callable[..., Path], tmp_path: Path) -> None:
    model = random_llama()
    convert_to_weights(make_run(model), tmp_path / "folder", dtype="bfloat16")
    convert_from_weights(tmp_path / "folder", tmp_path / "back")
    rounded = {name: weight.bfloat16().float() for name, weight in megatron_weights(model).items()}
    back = weights_of(tmp_path / "back")
    assert {weight.dtype for weight in back.values()} == {torch.bfloat16}
    assert_equal(back, rounded)


def test_files_that_are_not_the_models(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(random_llama())
    convert_to_weights(run, tmp_path / "folder")
    file = tmp_path / "folder" / "model.safetensors"
    sound = load_file(file)
    norm = "decoder.final_layernorm.weight"
    for changed, match in (
        ({name: tensor for name, tensor in sound.items() if name != norm}, f"lacks {norm}"),
        ({**sound, "extra": torch.ones(2)}, "holds extra, which"),
        ({**sound, norm: torch.ones(2)}, rf"{norm} is \(2,\), and the model section makes it \(48,\)"),
    ):
        save_file(changed, file)
        with pytest.raises(ConversionError, match=match):
            convert_from_weights(tmp_path / "folder", tmp_path / "back")
    file.write_bytes(b"junk")
    with pytest.raises(ConversionError, match="cannot be read"):
        convert_from_weights(tmp_path / "folder", tmp_path / "back")
    with pytest.raises(ConversionError, match="exists already"):
        convert_to_weights(run, tmp_path / "folder")
    torch.save({"weights": {}, "run": subprocess.run}, tmp_path / "bad.pt")
    with pytest.raises(ConversionError, match="a dictionary of `model` and `weights` and nothing else"):
        convert_from_weights(tmp_path / "bad.pt", tmp_path / "back")
    assert not (tmp_path / "back").exists()


# ---------------------------------------------------------------------------------------------------- means


def test_means_of_checkpoints(tmp_path: Path) -> None:
    models = [random_llama(initializer_range=0.1 * number) for number in (1, 2, 3)]
    for step, model in enumerate(models, 1):
        write_checkpoint(tmp_path / "run" / "checkpoints", step, megatron_weights(model), model_section(model.config))
    one, two, three = (megatron_weights(model) for model in models)
    run = tmp_path / "run"
    for number, (options, mean) in enumerate(
        (
            ({}, lambda a, b, c: (a + b + c) / 3),
            ({"last": 2}, lambda a, b, c: (b + c) / 2),
            ({"steps": [1, 3]}, lambda a, b, c: (a + c) / 2),
            ({"decay": 0.9}, lambda a, b, c: 0.9 * (0.9 * a + 0.1 * b) + 0.1 * c),
        )
    ):
        average(run, tmp_path / f"mean-{number}", **options)
        found = weights_of(tmp_path / f"mean-{number}")
        for name in one:
            expected = mean(*(weights[name].double() for weights in (one, two, three)))
            torch.testing.assert_close(found[name], expected.float(), rtol=1e-6, atol=1e-7)
    for options, error, match in (
        ({"last": 4}, CheckpointError, "holds 3 complete checkpoints, and --last is 4"),
        ({"last": 1}, CheckpointError, "a mean is of two checkpoints or more, and these are 1"),
        ({"steps": [1, 7]}, CheckpointError, "has no step-00000007; complete are: step-00000001"),
        ({"decay": 1.0}, UserError, "--ema is 1.0; it must be between 0 and 1"),
        ({"last": 2, "steps": [1, 2]}, UserError, "in two ways"),
    ):
        with pytest.raises(error, match=match):
            average(run, tmp_path / "none", **options)
    other = random_llama(num_hidden_layers=2)
    write_checkpoint(run / "checkpoints", 4, megatron_weights(other), model_section(other.config))
    with pytest.raises(CheckpointError, match="different models"):
        average(run, tmp_path / "none")


def test_a_mean_is_exported_and_begun_with(
    make_run: Callable[..., Path], dataset: Path, tokenizer: Path, tmp_path: Path
) -> None:
    models = [random_llama(vocab_size=VOCABULARY, initializer_range=0.1 * number) for number in (1, 2, 3)]
    for step, model in enumerate(models, 1):
        run = make_run(model, step=step)
    shutil.copyfile(tokenizer, run / "tokenizer" / "tokenizer.model")
    done = CliRunner().invoke(convert_app, ["average", str(run), str(tmp_path / "mean"), "--last", "2"])
    assert done.exit_code == 0, done.output
    two, three = ({name: weight.numpy() for name, weight in model.state_dict().items()} for model in models[1:])
    expected = {name: (two[name] + three[name]) / 2 for name in two}

    convert_to_hf(tmp_path / "mean", tmp_path / "hf", verify=False)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    assert exported.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_allclose(exported[name].numpy(), weight, rtol=1e-6, atol=1e-7)

    sections = {
        "extends": str(tmp_path / "mean" / "model.yaml"),
        "data": {"train": str(dataset / "train")},
        "optimizer": {"lr": 1e-30, "weight_decay": 0.0},
        "training": {"output_dir": str(tmp_path / "more"), "steps": 1, "global_batch_size": 1, "sequence_length": 32},
        "logging": {"wandb": "disabled"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "bigtrain", "pretrain", tmp_path / "run.yaml", "training.precision=fp32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    begun, mean = (weights_of(tmp_path / name) for name in ("more", "mean"))
    for name in mean:
        torch.testing.assert_close(begun[name], mean[name], rtol=0, atol=1e-20)


# --------------------------------------------------------------------------------------------- Megatron-LM's


@pytest.fixture(scope="module")
def megatron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Megatron-LM saves, made by megatron-core in processes of its own, with the logits of its models."""
    folder = tmp_path_factory.mktemp("megatron")
    script = Path(__file__).with_name("megatron_checkpoint.py")
    ranks = [subprocess.Popen([sys.executable, script, str(rank), folder]) for rank in range(4)]
    assert [rank.wait(timeout=900) for rank in ranks] == [0] * 4
    return folder


CONFIG = {
    "vocab_size": 448,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "more"),
    [("dense", {}), ("experts", {"num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True})],
)
def test_a_checkpoint_of_megatron_lm_comes_in(
    name: str, more: dict[str, object], megatron: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    """From tensor, pipeline and expert parallel, with the state of the distributed optimizer beside, and on to
    `transformers`."""
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {**CONFIG, **more}}))
    expected = torch.load(megatron / name / "logits.pt")
    convert_from_megatron(megatron / name, tmp_path / "out", config=tmp_path / "model.yaml", tokenizer=tokenizer_path)
    checkpoint = catalog.newest(tmp_path / "out" / "checkpoints")
    assert checkpoint is not None
    positions = torch.arange(30).expand(2, -1)
    with own_model(checkpoint) as model, torch.no_grad():
        found = model(IDS, positions, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    convert_to_hf(tmp_path / "out", tmp_path / "hf", vocab_size=448, verify=False)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(IDS).logits
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.distributed
def test_one_that_is_of_another_model_or_kind(megatron: Path, tmp_path: Path) -> None:
    config = tmp_path / "model.yaml"
    for changed, match in (
        (
            {"intermediate_size": 96},
            r"linear_fc1.weight is \(4, 160, 48\), and the configuration makes it \(4, 192, 48\)",
        ),
        ({"tie_word_embeddings": True}, "holds output_layer.weight, and the model"),
        ({"qkv_bias": True}, "lacks decoder.layers.self_attention.linear_qkv.bias"),
    ):
        config.write_text(yaml.safe_dump({"model": {**CONFIG, **changed}}))
        with pytest.raises(ConversionError, match=match):
            convert_from_megatron(megatron / "dense", tmp_path / "out", config=config)
    (tmp_path / "old" / "mp_rank_00").mkdir(parents=True)
    with pytest.raises(ConversionError, match=r"no distributed checkpoint of megatron-core.*older kind"):
        convert_from_megatron(tmp_path / "old", tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- adapters


def adapt(model: LlamaForCausalLM, folder: Path, **options: object) -> None:
    """An adapter of random numbers, by `peft`, and the model with it merged, by `peft` too."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    targets = ["q_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "expected")


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}}],
    ids=["plain", "rank-stabilised", "patterns"],
)
def test_a_merged_adapter_is_what_peft_makes_of_it(options: dict[str, object], tmp_path: Path) -> None:
    random_llama(num_key_value_heads=2).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    adapt(random_llama(num_key_value_heads=2), tmp_path, **options)
    assert merge_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged") == 9
    expected, found, before = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("expected", "merged", "model")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)
    assert sum(not torch.equal(found[name], before[name]) for name in before) == 9


def test_an_adapter_comes_in_with_the_model(tmp_path: Path) -> None:
    random_llama().save_pretrained(tmp_path / "model")
    adapt(random_llama(), tmp_path)
    words = ["from-hf", tmp_path / "model", tmp_path / "new", "--adapter", tmp_path / "adapter", "--no-verify"]
    done = CliRunner().invoke(convert_app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    expected = megatron_weights(LlamaForCausalLM.from_pretrained(tmp_path / "expected"))
    found = weights_of(tmp_path / "new")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "expected", "model", "new"]


def test_an_adapter_of_ours_is_read_by_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    model = random_llama()
    names = [f"model.layers.{layer}.self_attn.{which}_proj.weight" for layer in range(3) for which in "qk"]
    torch.manual_seed(4)
    pairs = {name: (torch.randn(4, 48), torch.randn(48, 4)) for name in names}
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", pairs, alpha=8, base_model="model")
    read = read_adapter(tmp_path / "adapter")
    expected = {name: read.merged(name, weight) for name, weight in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-5)


def test_adapters_that_cannot_be_merged(tmp_path: Path) -> None:
    random_llama().save_pretrained(tmp_path / "model")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    name = "model.layers.0.self_attn.q_proj.weight"

    def refused(match: str) -> None:
        with pytest.raises(ConversionError, match=match):
            merge_adapter(tmp_path / "model", adapter, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("adapter_config.json cannot be read")
    write_adapter(adapter, {"model.layers.7.x.weight": (torch.ones(2, 48), torch.ones(48, 2))}, alpha=1, base_model="m")
    refused("adapter is for model.layers.7.x.weight, and the model has no such weight")
    write_adapter(adapter, {name: (torch.ones(2, 40), torch.ones(48, 2))}, alpha=1, base_model="m")
    refused(r"q_proj.weight is \(48, 48\), and the adapter is for \(48, 40\)")
    write_adapter(adapter, {name: (torch.ones(2, 48), torch.ones(48, 2))}, alpha=1, base_model="m")
    config = adapter / "adapter_config.json"
    sound = config.read_text()
    for old, new, match in (
        ('"bias": "none"', '"bias": "all"', "bias is 'all', which cannot be merged here"),
        ('"peft_type": "LORA"', '"peft_type": "IA3"', "peft_type is 'IA3'; LORA can"),
    ):
        config.write_text(sound.replace(old, new))
        refused(match)
    config.write_text(sound)
    shutil.copyfile(tmp_path / "model" / "model.safetensors", adapter / "adapter_model.safetensors")
    refused("is no part of a LoRA of linear layers")
