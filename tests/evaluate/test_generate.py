"""Generation against `transformers`, token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bigtrain.errors import CheckpointError, UserError
from bigtrain.evaluate.generate import generate

PROMPTS = ["def f(x):", "hello", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads and writes characters; `~` ends a document."""
    folder = tmp_path_factory.mktemp("model")
    characters = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({chr(32 + i): i for i in range(95)}, unk_token="?")  # printable ASCII
    )
    characters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    characters.decoder = tokenizers.decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="~", bos_token="~").save_pretrained(folder)
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=95,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=94,
        eos_token_id=94,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def by_hand(folder: Path, prompt: str, count: int) -> str:
    """The likeliest token again and again, without a cache."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = [ord(character) - 32 for character in prompt] or [94]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count:
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if best == 94:
                break
            ids.append(best)
    return "".join(chr(32 + i) for i in ids[start:])


def test_at_temperature_0_the_likeliest_token_is_taken_always(folder: Path) -> None:
    made = generate(folder, PROMPTS, max_new_tokens=20, temperature=0)
    assert made == [by_hand(folder, prompt, 20) for prompt in PROMPTS]
    assert any(made)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}])
def test_drawing_among_one_is_taking_the_likeliest(folder: Path, narrow: dict[str, Any]) -> None:
    assert generate(folder, PROMPTS, max_new_tokens=12, **narrow) == generate(
        folder, PROMPTS, max_new_tokens=12, temperature=0
    )


def test_the_seed_decides_what_is_drawn_and_nothing_else_is_touched(folder: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (
        generate(folder, PROMPTS, max_new_tokens=30, temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 60}, r"'def f\(x\):' has 9 tokens; with 60 new ones .* the model's 64 positions"),
    ],
)
def test_options_out_of_range(folder: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        generate(folder, PROMPTS, **{"max_new_tokens": 4, **options})


def test_a_run_is_to_be_converted_first(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    for part in ("run", "run/checkpoints"):
        with pytest.raises(CheckpointError, match=f"make a Hugging Face folder .* to-hf .*{part} OUTPUT"):
            generate(tmp_path / part, PROMPTS)


def test_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing: no such folder"):
        generate(tmp_path / "nothing", PROMPTS)
    with pytest.raises(CheckpointError, match=r"it has no config.json, no tokenizer_config.json"):
        generate(tmp_path, PROMPTS)
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match="holds no weights"):
        generate(tmp_path, PROMPTS)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
