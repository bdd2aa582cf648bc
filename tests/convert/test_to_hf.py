"""The export against `transformers`' own models, whose weights went into the checkpoint by another map."""

import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import SHAPES, megatron_weights, model_section, random_llama, write_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bigtrain.convert import export, families
from bigtrain.convert.families.llama import LLAMA
from bigtrain.convert.mapping import WHOLE
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.errors import CheckpointError, ConversionError, DataError, UserError


def expected_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What belongs in the files: everything, tied weights once."""
    tied = model.config.tie_word_embeddings
    return {name: weight for name, weight in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_weight_and_the_configuration_come_back(
    shape: dict[str, Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    model = random_llama(**shape)
    made = convert_to_hf(make_run(model), tmp_path / "out")

    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), expected_weights(model))
    assert (made.step, made.files, made.family) == (7, 1, "Llama")
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())

    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    ours, theirs = (dict(m.config.to_dict(), _name_or_path=None) for m in (loaded, model))
    differing = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    assert differing <= {"architectures", "bos_token_id", "eos_token_id", "dtype"}
    ids = torch.arange(100)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_the_type_is_the_one_asked_for(make_run: Callable[..., Path], tmp_path: Path) -> None:
    model = random_llama()
    convert_to_hf(make_run(model), tmp_path / "out", dtype="bfloat16")
    rounded = {name: weight.bfloat16() for name, weight in expected_weights(model).items()}
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), rounded)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_large_models_are_cut_into_files_with_an_index(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "FILE_BYTES", 100_000)
    model = random_llama()
    made = convert_to_hf(make_run(model), tmp_path / "out")
    files = sorted(tmp_path.glob("out/*.safetensors"))
    assert made.files == len(files) > 3
    assert all(file.stat().st_size < 110_000 for file in files)
    assert_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict(), model.state_dict())


def test_the_tokenizer_and_the_ends_of_documents(
    make_run: Callable[..., Path], tokenizer_path: Path, tmp_path: Path
) -> None:
    convert_to_hf(make_run(random_llama()), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ends = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 2)
    assert (ends.bos_token_id, ends.eos_token_id) == (2, 2)
    assert tokenizer.decode(tokenizer("\tdef f(): pass\n")["input_ids"]) == "\tdef f(): pass\n"


def test_others_may_read_the_files(make_run: Callable[..., Path], tmp_path: Path) -> None:
    convert_to_hf(make_run(random_llama()), tmp_path / "out")
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1


@pytest.mark.parametrize("where", [".", "checkpoints", "checkpoints/step-00000007"])
def test_a_checkpoint_is_found_from_any_folder_of_its_run(
    where: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(random_llama())
    assert convert_to_hf(run / where, tmp_path / "out").step == 7


def test_of_a_run_the_newest_complete_one_is_taken(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(random_llama())
    newer = random_llama(initializer_range=0.3)
    make_run(newer, step=8)
    shutil.copytree(run / "checkpoints" / "step-00000008", run / "checkpoints" / "step-00000009")
    (run / "checkpoints" / "step-00000009" / "complete.json").unlink()
    assert convert_to_hf(run, tmp_path / "out").step == 8
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), expected_weights(newer))


def test_a_checkpoint_outside_a_run_takes_the_tokenizer_given(tokenizer_path: Path, tmp_path: Path) -> None:
    model = random_llama()
    path = write_checkpoint(tmp_path, 3, megatron_weights(model), model_section(model.config))
    with pytest.raises(ConversionError, match="name the tokenizer that made its data"):
        convert_to_hf(path, tmp_path / "out")
    convert_to_hf(path, tmp_path / "out", tokenizer=tokenizer_path)
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), expected_weights(model))


def test_an_empty_folder_and_the_remains_of_a_killed_conversion_are_no_obstacle(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.writing").mkdir()
    (tmp_path / "out.writing" / "config.json").write_text("half a fi")
    convert_to_hf(make_run(random_llama()), tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "out.writing").exists()


# --------------------------------------------------------------------------------------------------- mistakes


def refused(error: type[UserError], match: str, source: Path, output: Path, **options: Any) -> None:
    """The conversion raises, and leaves everything as it was."""
    before = sorted(output.parent.rglob("*")) if output.parent.is_dir() else None
    with pytest.raises(error, match=match):
        convert_to_hf(source, output, **options)
    assert before == (sorted(output.parent.rglob("*")) if output.parent.is_dir() else None)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"normalization": "layernorm"},
            r"fits no family .*, Gemma-2 \(gemma2\), .* is Llama: .*'rmsnorm'$",
        ),
        (
            {"position_embedding": "learned", "qkv_bias": True},
            "is Qwen2: model.position_embedding is 'learned' ",
        ),
        ({"gated_mlp": False}, "model.gated_mlp is False and must be True"),
        ({"linear_bias": True}, "model.linear_bias"),
        ({"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}, "model.sliding_window is"),
    ],
)
def test_a_model_that_is_of_no_family(
    changed: dict[str, Any], match: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    refused(ConversionError, match, make_run(random_llama(), **changed), tmp_path / "out")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints" / ".step-00000004.writing").mkdir(parents=True)
    refused(CheckpointError, "nothing: no such folder", tmp_path / "nothing", tmp_path / "out")
    refused(CheckpointError, "empty holds no complete checkpoint; give", tmp_path / "empty", tmp_path / "out")
    incomplete = r"no complete checkpoint \(incomplete: .step-00000004.writing\)"
    refused(CheckpointError, incomplete, tmp_path / "run", tmp_path / "out")


def test_a_checkpoint_that_is_incomplete_or_damaged(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(random_llama())
    step = run / "checkpoints" / "step-00000007"
    (tensors,) = step.glob("*.distcp")
    content = tensors.read_bytes()

    tensors.unlink()
    refused(CheckpointError, r"\.distcp is missing", run, tmp_path / "out")
    tensors.write_bytes(content[:-1])
    refused(CheckpointError, "bytes, .* were written", run, tmp_path / "out")
    tensors.write_bytes(bytes(len(content)))
    refused(CheckpointError, "cannot read .*step-00000007", run, tmp_path / "out")
    tensors.write_bytes(content)

    metadata = (step / ".metadata").read_bytes()
    (step / ".metadata").write_bytes(bytes(len(metadata)))
    refused(CheckpointError, r"\.metadata is damaged", run, tmp_path / "out")
    (step / ".metadata").write_bytes(metadata)

    (step / "complete.json").unlink()
    refused(CheckpointError, "not a complete checkpoint", step, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.update({"decoder.layers.mlp.router.weight": torch.ones(3, 2)}), r"mlp.router.weight: no row"),
        (lambda w: w.pop("decoder.final_layernorm.weight"), "no weight of the checkpoint fills model.norm.weight"),
        (lambda w: w.update({"output_layer.weight": torch.ones(440, 48)}), "has no lm_head.weight"),
        (
            lambda w: w.update({"decoder.layers.mlp.linear_fc2.weight": torch.ones(3, 48, 70)}),
            r"down_proj.weight is \(48, 80\), and decoder.layers.mlp.linear_fc2.weight would make it \(48, 70\)",
        ),
    ],
)
def test_a_tensor_without_a_place_and_a_place_without_a_tensor(
    change: Callable[[dict[str, torch.Tensor]], None], match: str, tokenizer_path: Path, tmp_path: Path
) -> None:
    model = random_llama(tie_word_embeddings=True)
    weights = megatron_weights(model)
    change(weights)
    path = write_checkpoint(tmp_path / "checkpoints", 1, weights, model_section(model.config))
    refused(ConversionError, match, path, tmp_path / "out", tokenizer=tokenizer_path)


def test_a_map_that_fills_a_tensor_twice(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = {**LLAMA.weights, "output_layer.weight": {"model.embed_tokens.weight": WHOLE}}
    monkeypatch.setattr(families, "FAMILIES", (replace(LLAMA, weights=twice),))
    refused(ConversionError, "embed_tokens.weight: filled from both", make_run(random_llama()), tmp_path / "out")


def test_a_shape_that_this_version_does_not_know(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(random_llama(), telepathy=True)
    refused(CheckpointError, r"complete.json: model.telepathy: Extra inputs", run, tmp_path / "out")


def test_outputs_that_cannot_be(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(random_llama())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    refused(ConversionError, "full exists already", run, tmp_path / "full")
    refused(ConversionError, "file exists already", run, tmp_path / "file")
    refused(ConversionError, "out cannot be written: Not a directory", run, tmp_path / "file" / "out")


def test_a_tokenizer_that_is_not_the_models(
    make_run: Callable[..., Path], tokenizer_path: Path, tmp_path: Path
) -> None:
    run = make_run(random_llama(vocab_size=400))
    refused(ConversionError, "440 tokens and the model only 400", run, tmp_path / "out")

    run = make_run(random_llama())
    other = tmp_path / "other.model"
    other.write_bytes(tokenizer_path.read_bytes() + b"\x1a\x00")  # an empty field more
    refused(ConversionError, "other.model is not the tokenizer", run, tmp_path / "out", tokenizer=other)
    (run / "tokenizer" / "tokenizer.model").write_bytes(b"junk")
    refused(DataError, "not a SentencePiece model", run, tmp_path / "out")


@pytest.mark.parametrize("size", [60_000, 10_000, 200])
def test_a_disk_that_is_full(size: int, make_run: Callable[..., Path], tmp_path: Path) -> None:
    """Files may not grow beyond `size` bytes: the weights' does, or the tokenizer's, or the configuration's."""
    run = make_run(random_llama())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        refused(ConversionError, r"out cannot be written: .*File too large", run, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
