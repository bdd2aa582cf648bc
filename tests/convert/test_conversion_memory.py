"""A model is converted in the memory of its largest tensor and a little, however large it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig

from bigtrain.convert.export import model_shapes
from bigtrain.convert.safetensors_file import TensorFile

TOOLS = Path(__file__).parents[2] / "tools"
LIBRARIES = 500e6
"""Bytes allowed beside twice the largest tensor."""
SHAPE = LlamaConfig(  # in the proportions of Llama-3 70B: the embedding is the largest tensor by far
    vocab_size=64128,
    hidden_size=2048,
    intermediate_size=7168,
    num_hidden_layers=10,
    num_attention_heads=16,
    num_key_value_heads=2,
    tie_word_embeddings=False,
    architectures=["LlamaForCausalLM"],
    dtype="bfloat16",
)


def sparse_model(folder: Path) -> int:
    """3 GB of zeros that take no room; gives the largest tensor's bytes in float32."""
    SHAPE.save_pretrained(folder)
    shapes = model_shapes(SHAPE)
    TensorFile(folder / "model.safetensors", shapes, torch.float32).close()
    return 4 * max(torch.Size(shape).numel() for shape in shapes.values())


def peak_bytes(*command: object) -> int:
    """Of a tool that ends well."""
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.slow
def test_a_large_model_passes_through_little_memory(tokenizer_path: Path, tmp_path: Path) -> None:
    there, here, again = (tmp_path / name for name in ("there", "here", "again"))
    largest = sparse_model(there)
    total = sum(file.stat().st_size for file in there.iterdir())
    allowed = 2 * largest + LIBRARIES
    assert total > 2 * allowed, "a model that does not fit"
    taken = peak_bytes(TOOLS / "convert_from_hf.py", there, here, "--no-verify")
    given = peak_bytes(
        *(TOOLS / "convert_to_hf.py", here, again, "--no-verify", "--dtype", "bfloat16", "--tokenizer", tokenizer_path)
    )
    assert taken < allowed
    assert given < allowed
    with safe_open(again / "model.safetensors", "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == model_shapes(SHAPE)  # noqa: SIM118
