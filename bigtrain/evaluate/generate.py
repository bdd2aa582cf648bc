"""Text continued by an exported model, through `transformers`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bigtrain.errors import CheckpointError, UserError


def generate(
    model_folder: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """Continue each prompt until the model ends its document or `max_new_tokens` are made.

    Args:
        model_folder: A Hugging Face folder, as `bigtrain convert to-hf` makes it.
        prompts: Texts to continue.
        max_new_tokens: The longest continuation, in tokens.
        temperature: Divides the logits before they become probabilities; 0 takes the likeliest token always.
        top_k: Draw among that many likeliest tokens; 0: among all.
        top_p: Draw among the likeliest tokens that together have this probability (nucleus sampling, arXiv:1904.09751).
        seed: Decides what is drawn.

    Returns:
        The continuations, without their prompts.

    Raises:
        CheckpointError: The folder holds no Hugging Face model.
        UserError: An option is out of its range, or a prompt and its continuation do not fit the model's positions.
    """
    _check_options(max_new_tokens, temperature, top_k, top_p)
    _check_folder(model_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto", local_files_only=True).to(device).eval()
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature > 0 else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [
            _continue(model, tokenizer, prompt, max_new_tokens=max_new_tokens, do_sample=temperature > 0, **drawing)
            for prompt in prompts
        ]


def _continue(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, **options: Any) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
    if ids.shape[1] == 0:  # what stands before every document
        ids = torch.tensor([[model.config.bos_token_id]])
    positions = model.config.max_position_embeddings
    if ids.shape[1] + options["max_new_tokens"] > positions:
        raise UserError(
            f"the prompt {prompt[:40]!r} has {ids.shape[1]} tokens; with {options['max_new_tokens']} new ones "
            f"(max_new_tokens) that is more than the model's {positions} positions (max_position_embeddings)"
        )
    ids = ids.to(model.device)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def _check_options(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    for name, value, fits, rule in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "must be at least 1"),
        ("temperature", temperature, temperature >= 0, "must be 0 (the likeliest token always) or more"),
        ("top_k", top_k, top_k >= 0, "must be 0 (all tokens) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "must be above 0 and at most 1"),
    ):
        if not fits:
            raise UserError(f"{name} is {value}; it {rule}")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if (folder / "checkpoints").is_dir() or (folder / "complete.json").is_file() or any(folder.glob("step-*")):
        raise CheckpointError(
            f"{folder} is a run of bigtrain; make a Hugging Face folder of it first: "
            f"bigtrain convert to-hf {folder} OUTPUT"
        )
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not a Hugging Face model with its tokenizer: it has no {', no '.join(missing)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no weights (*.safetensors)")
