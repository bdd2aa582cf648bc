"""Weights that were trained by others go in and give the answers they should, and go out as they came."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.cli import app
from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.own_model import own_model, own_shapes
from bigtrain.convert.source import model_config
from bigtrain.convert.weights import Weights
from bigtrain.data.encoder import EncoderBatch

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
NEW = 12
SENTENCES = ("A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell sharply today.")


def asset(name: str) -> Path:
    script = Path(__file__).parents[2] / "tools" / "fetch_assets.py"
    fetched = subprocess.run([sys.executable, script, name], capture_output=True, text=True, check=False)
    assert fetched.returncode == 0, fetched.stderr
    return Path(fetched.stdout.strip().splitlines()[-1])


def bigtrain(*words: object) -> None:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output


def assert_equal_files(one: Path, other: Path) -> None:
    """A tensor at a time."""
    with safe_open(one, "pt") as there, safe_open(other, "pt") as here:
        assert set(there.keys()) == set(here.keys())
        for name in there.keys():  # noqa: SIM118 (it is no dictionary)
            assert torch.equal(there.get_tensor(name), here.get_tensor(name)), name


def test_smollm2_knows_the_capital_of_france(tmp_path: Path) -> None:
    folder = asset("smollm2")
    bigtrain("convert", "from-hf", folder, tmp_path / "here")
    parity = json.loads((tmp_path / "here" / "parity.json").read_text())
    assert parity["float32"]["greedy_agreement"] == 1
    assert parity["embeddings_tied"]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)
    expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert "Paris" in expected
    for number, source in enumerate((tmp_path / "here", folder)):
        output = tmp_path / f"{number}.jsonl"
        greedy = ("--temperature", 0, "--max-new-tokens", NEW)
        bigtrain("generate", source, "--prompt", PROMPT, *greedy, "--output", output)
        told = json.loads(output.read_text())
        assert (told["continuation"], told["tokens"]) == (expected, NEW)

    bigtrain("convert", "to-hf", tmp_path / "here", tmp_path / "again", "--no-verify")
    assert_equal_files(folder / "model.safetensors", tmp_path / "again" / "model.safetensors")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    messages = [{"role": "user", "content": "Who are you?"}]
    assert again.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )


def test_sentences_lie_where_minilm_puts_them(tmp_path: Path) -> None:
    folder = asset("minilm")
    convert_from_hf(folder, tmp_path / "here", verify=False)
    read = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
    ids, seen = read["input_ids"], read["attention_mask"]
    checkpoint = find_checkpoint(tmp_path / "here")
    head = own_shapes(model_config(checkpoint)).keys() - Weights(checkpoint).shapes.keys()
    with torch.no_grad(), own_model(checkpoint, but=head) as model:
        kinds = torch.zeros_like(ids)
        hidden = model.hidden_states(EncoderBatch(ids, ids, torch.zeros(ids.shape), kinds, seen.bool())).transpose(0, 1)
        expected = AutoModel.from_pretrained(folder)(**read).last_hidden_state
    ours, theirs = (
        torch.nn.functional.normalize((x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True))
        for x in (hidden, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    alike = ours @ ours.T
    assert alike[0, 1] > 0.5 > 0.2 > alike[0, 2]
