"""Generation with the features of every family against `transformers`' own `generate`, from whose model it begins."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, WINDOW, weights

from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.evaluate.generate import generate, open_model
from bigtrain.evaluate.sampling import Sampling

PROMPTS = [
    "import",
    "class Reader(Base):\n    def read(self, size=-1):\n        return self.raw.read(size)",
    "for number in range(10):",
]
NAMES = ("gpt2", "gpt-neox", "mistral", "mixtral", "qwen3", "gemma-2", "gemma-3", "olmo-2", "phi-3")


@pytest.mark.parametrize("name", NAMES)
def test_the_likeliest_tokens_are_those_of_transformers(
    name: str, tokenizer: Path, make_run: Callable[..., Path]
) -> None:
    """Prompts shorter and longer than the window together, and one alone; the texts grow beyond it."""
    family = FAMILIES[name]
    model = family.build().eval()
    run = make_run(weights=weights(model, family.section), tokenizer=tokenizer, **family.section)
    encode = load_tokenizer(tokenizer).encode
    prompts, new = PROMPTS, WINDOW + 6
    if name == "phi-3":  # its angles are others beyond 32 tokens, where transformers begins anew
        prompts = PROMPTS[::2]
        new = 32 - max(len(encode(prompt)) for prompt in prompts)
    made = generate(open_model(run), prompts, Sampling(temperature=0), max_new_tokens=new, batch_size=2)
    for one, prompt in zip(made, prompts, strict=True):
        ids = torch.tensor([encode(prompt)])
        options = {"attention_mask": torch.ones_like(ids), "eos_token_id": 2, "pad_token_id": 0, "use_cache": True}
        expected = model.generate(ids, do_sample=False, max_new_tokens=new, **options)[0, ids.shape[1] :].tolist()
        assert [*one.ids, *[2] * one.ended] == expected
    assert len(encode(PROMPTS[1])) > WINDOW
