"""Generation from a Hugging Face folder, token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bigtrain.config import ParallelConfig
from bigtrain.errors import CheckpointError, UserError
from bigtrain.evaluate.generate import generate, open_model
from bigtrain.evaluate.sampling import Sampling

PROMPTS = ["def f(x):", "hello", "~"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<answer>"


@pytest.fixture(scope="module")
def folder(characters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    AutoTokenizer.from_pretrained(characters).save_pretrained(folder)
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


def texts(folder: Path, max_new_tokens: int, chat: bool = False, **sampling: Any) -> list[str]:
    made = generate(open_model(folder), PROMPTS, Sampling(**sampling), max_new_tokens=max_new_tokens, chat=chat)
    return [one.text for one in made]


def by_hand(folder: Path, prompt: str, count: int) -> str:
    """The likeliest token again and again, without a cache."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = [ord(character) - 32 for character in prompt]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count:
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if best == 94:
                break
            ids.append(best)
    return "".join(chr(32 + i) for i in ids[start:])


def test_at_temperature_0_the_likeliest_token_is_taken_always(folder: Path) -> None:
    made = texts(folder, 20, temperature=0)
    assert made == [by_hand(folder, prompt, 20) for prompt in PROMPTS]
    assert any(made)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}])
def test_drawing_among_one_is_taking_the_likeliest(folder: Path, narrow: dict[str, Any]) -> None:
    assert texts(folder, 12, **narrow) == texts(folder, 12, temperature=0)


def test_the_seed_decides_what_is_drawn_and_nothing_else_is_touched(folder: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (texts(folder, 30, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_chat(folder: Path, tmp_path: Path) -> None:
    """The model reads what the template makes of the prompt."""
    with pytest.raises(UserError, match=r"the tokenizer in .* has none"):
        texts(folder, 8, chat=True)
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    spelled_out = [by_hand(folder, f"<user>{prompt}<answer>", 8) for prompt in PROMPTS]
    assert texts(tmp_path, 8, chat=True, temperature=0) == spelled_out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 60}, r"'def f\(x\):' has 9 tokens; with 60 new ones .* the model's 64 positions"),
    ],
)
def test_options_out_of_range(folder: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        texts(folder, **{"max_new_tokens": 4, **options})


def test_what_is_no_folder_of_a_language_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="a Hugging Face folder without a tokenizer"):
        open_model(tmp_path)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"transformers cannot make a language model of it"):
        texts(tmp_path, 4)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(CheckpointError, match="transformers cannot read it"):
        open_model(tmp_path)
    with pytest.raises(UserError, match="which transformers reads in one process: leave --nproc"):
        open_model(folder, parallel=ParallelConfig(tensor=2))
