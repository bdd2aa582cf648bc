"""Adapters as a user has them: trained on a model of Hugging Face's, stopped and resumed in another layout, and given
back to `peft`, and merged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from chats import MARKED, PLAIN, TALK, chat_tokenizer
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bigtrain.errors import CheckpointError
from bigtrain.finetune.inputs import open_task
from bigtrain.finetune.load import load_task_config
from bigtrain.training.preflight import preflight

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def succeed(*words: Any) -> str:
    command = [sys.executable, "-m", "bigtrain", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(run: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["loss"], row["grad_norm"]) for row in lines if "loss" in row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as Hugging Face has it, conversations, and a configuration that names both."""
    made = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=320, num_hidden_layers=2, max_position_embeddings=256, **shape)
    ).save_pretrained(made / "model")
    chat_tokenizer(PLAIN).save_pretrained(made / "model")
    (made / "talks.jsonl").write_text("".join(json.dumps({"messages": TALK[:end]}) + "\n" for end in (3, 5) * 4))
    config = {
        "finetune": {
            "task": "sequence_to_sequence",
            "train": str(made / "talks.jsonl"),
            "validation": str(made / "talks.jsonl"),
            "columns": {"messages": "messages"},
            "lora": {
                "r": 4,
                "lora_alpha": 16,
                "target_modules": ["q_proj", "v_proj", "down_proj"],
            },
        },
        "optimizer": {"lr": 1e-2},
        "schedule": {"name": "constant"},
        "training": {
            "output_dir": str(made / "run"),
            "steps": 4,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "sequence_length": 128,
            "precision": "fp32",
        },
        "checkpoint": {"initialize_from": str(made / "model"), "interval": 2},
        "logging": {"wandb": "disabled"},
    }
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    return made


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(64).view(2, 32)).logits


def loss_of_answers(folder: Path) -> float:
    """The mean over what the assistant says in the conversations, by `transformers`."""
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    losses = []
    for end in (3, 5):
        options = {"return_dict": True, "return_assistant_tokens_mask": True}
        found = tokenizer.apply_chat_template(TALK[:end], chat_template=MARKED, **options)
        ids, said = torch.tensor(found["input_ids"]), torch.tensor(found["assistant_masks"], dtype=torch.bool)
        with torch.no_grad():
            losses.append(F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")[said[1:]])
    return torch.cat(losses).mean().item()


def test_the_road_of_an_adapter(folder: Path) -> None:
    run = folder / "run"
    told = succeed("finetune", folder / "config.yaml", "parallel.zero_stage=3", "--nproc", "2")
    assert "verified on" in told  # what was made of the folder
    whole = rows(run)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    succeed("finetune", folder / "config.yaml")
    torch.testing.assert_close(torch.tensor(rows(run)), torch.tensor(whole), atol=0, rtol=2e-5)

    def refused(*words: str) -> str:
        with pytest.raises(CheckpointError) as raised:
            preflight(load_task_config(folder / "config.yaml", words), open_task)
        return str(raised.value)

    assert "finetune.lora was {'r': 4, 'lora_alpha': 16.0" in refused("finetune.lora=null")
    assert "and is {'r': 8," in refused("finetune.lora.r=8")
    beginning = f"checkpoint.initialize_from={run}", f"training.output_dir={folder / 'other'}"
    assert "has adapters (finetune.lora) beside its weights; merge them first" in refused(*beginning)

    succeed("convert", "to-hf", run, folder / "adapter", "--adapter")
    succeed("convert", "to-hf", run, folder / "merged")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    before = logits(base)
    merged = logits(AutoModelForCausalLM.from_pretrained(folder / "merged"))
    adapted = logits(PeftModel.from_pretrained(base, folder / "adapter"))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert loss_of_answers(folder / "merged") == pytest.approx(last["validation_loss"], rel=1e-5)
    assert (merged - before).abs().max() > 1e-2
    torch.testing.assert_close(adapted, merged, atol=2e-6, rtol=0)
