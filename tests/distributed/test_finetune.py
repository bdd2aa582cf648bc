"""Fine-tuning trains what plain PyTorch trains on `transformers`' models with the same head, in every layout."""

import csv
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

sys.path.insert(0, str(Path(__file__).parent))
import plain

pytestmark = pytest.mark.distributed

STEPS, EXAMPLES, LENGTH, LR = 3, 8, 64, 1e-3
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"zero_stage": 3}],
    2: [{"tensor": 2, "sequence": True}, {"tensor": 2}, {"pipeline": 2}, {"zero_stage": 2}],
}
TASKS = ["classification", "regression", "tagging", "question_answering"]
CASES = [(task, nproc, parallel) for nproc, layouts in LAYOUTS.items() for parallel in layouts for task in TASKS]

WORDS = ["import", "json", "class", "value", "return", "self", "none", "true", "async", "def", "wait", "loop", "event"]
TEXTS = [" ".join(WORDS[i % 4 : i % 4 + 3 + i]) for i in range(EXAMPLES)]
CLASSES = [["a", "b", "c"][i % 3] for i in range(EXAMPLES)]
NUMBERS = [0.5 * i - 1 for i in range(EXAMPLES)]
TAGS = [[("O", "B-X", "I-X", "O", "B-Y")[j % 5] for j in range(len(text.split()))] for text in TEXTS]
LABELS = ["O", "B-X", "I-X", "B-Y"]


def case_id(case: tuple[str, int, dict[str, Any]]) -> str:
    task, nproc, parallel = case
    return "_".join([task, f"{nproc}-processes", *(f"{key}-{value}" for key, value in parallel.items())])


def write_examples(folder: Path) -> None:
    """The examples of every task, as a user has them."""
    for task, values in (("classification", CLASSES), ("regression", NUMBERS)):
        with (folder / f"{task}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(zip(TEXTS, values, strict=True))
    sentences = (
        "\n".join(map("\t".join, zip(t.split(), tags, strict=True))) for t, tags in zip(TEXTS, TAGS, strict=True)
    )
    (folder / "tagging.conll").write_text("\n\n".join(sentences) + "\n")
    questions = [
        {
            "context": text,
            "qas": [
                {
                    "id": str(i),
                    "question": WORDS[i],
                    "answers": [{"text": word, "answer_start": text.index(word)}] if i % 4 else [],
                    "is_impossible": i % 4 == 0,
                }
            ],
        }
        for i, text in enumerate(TEXTS)
        for word in [text.split()[i % 3]]
    ]
    (folder / "question_answering.json").write_text(json.dumps({"data": [{"paragraphs": questions}]}))


def config(folder: Path, tokenizer: Path, task: str, parallel: dict[str, Any]) -> dict[str, Any]:
    file = next(folder.glob(f"{task}.*"))
    labels = {"classification": ["a", "b", "c"], "tagging": LABELS}.get(task)
    return {
        "model": {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
        },
        "tokenizer": {"path": str(tokenizer)},
        "finetune": {"task": task, "train": str(file), "labels": labels},
        "parallel": parallel,
        "optimizer": {"lr": LR, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "schedule": {"name": "constant"},
        "training": {
            "output_dir": str(folder / "unused"),
            "steps": STEPS,
            "global_batch_size": EXAMPLES,
            "micro_batch_size": 2,
            "sequence_length": LENGTH,
            "precision": "fp32",
        },
    }


@functools.cache
def model(task: str) -> nn.Module:
    kind: Any = {"tagging": LlamaForTokenClassification, "question_answering": LlamaForQuestionAnswering}
    torch.manual_seed(7)
    made = kind.get(task, LlamaForSequenceClassification)(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=128,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            num_labels={"classification": 3, "regression": 1, "tagging": len(LABELS)}.get(task, 2),
            problem_type="regression" if task == "regression" else None,
            pad_token_id=0,
            classifier_dropout=0.0,
            use_cache=False,
        )
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter))
    return made


def weights(task: str) -> dict[str, Tensor]:
    made: Any = model(task)
    body = made.transformer if task == "question_answering" else made.model
    head = made.qa_outputs if task == "question_answering" else made.score
    found = plain.megatron_weights(SimpleNamespace(config=made.config, model=body))  # type: ignore[arg-type]
    return found | {f"head.{name}": value.detach() for name, value in head.named_parameters()}


def tensors(task: str, processor: Any) -> dict[str, Tensor]:
    """The one batch that holds all examples, as `transformers` wants it."""
    eos = processor.eos_id()
    rows, labels = [], []
    starts, ends = [], []
    for i, text in enumerate(TEXTS):
        ids = [*processor.encode(text), eos]
        if task == "tagging":
            marks, row = [], []
            for word, tag in zip(text.split(), TAGS[i], strict=True):
                pieces = (
                    processor.encode(word) if not row else processor.encode(f"x {word}")[len(processor.encode("x")) :]
                )
                row += pieces
                first = next(n for n, piece in enumerate(pieces) if processor.id_to_piece(piece) != "▁")
                marks += [LABELS.index(tag) if n == first else -100 for n in range(len(pieces))]
            assert [*row, eos] == ids, "a word's pieces do not depend on its neighbours"
            labels.append([*marks, -100])
        if task == "question_answering":
            question = [*processor.encode(WORDS[i]), eos]
            ids = [*question, *ids]
            starts.append(len(ids) - 1)
            ends.append(len(ids) - 1)
            if i % 4:
                word = text.split()[i % 3]
                before = len(processor.encode(" ".join(text.split()[: i % 3]))) if i % 3 else 0
                count = len(processor.encode(" ".join(text.split()[: i % 3 + 1]))) - before
                assert text.index(word) == len(" ".join([*text.split()[: i % 3], ""])), "the word's first occurrence"
                starts[-1] = len(question) + before
                ends[-1] = len(question) + before + count - 1
                starts[-1] += processor.id_to_piece(ids[starts[-1]]) == "▁"  # the space before is not the answer's
        rows.append(ids)
    longest = max(map(len, rows))
    pad: Callable[[list[int], int], list[int]] = lambda row, value: row + [value] * (longest - len(row))  # noqa: E731
    mask = torch.tensor([pad([1] * len(row), 0) for row in rows])
    given = {"input_ids": torch.tensor([pad(row, 0) for row in rows]), "attention_mask": mask}
    if task == "classification":
        return {**given, "labels": torch.tensor([["a", "b", "c"].index(name) for name in CLASSES])}
    if task == "regression":
        return {**given, "labels": torch.tensor(NUMBERS)}
    if task == "tagging":
        return {**given, "labels": torch.tensor([pad(row, -100) for row in labels])}
    return {**given, "start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}


def loss_without_padding(said: Any, batch: dict[str, Tensor]) -> Tensor:
    """`transformers` looks for answers in padding as well, so that its loss depends on how much there is."""
    hidden = batch["attention_mask"] == 0
    starts, ends = (logits.masked_fill(hidden, float("-inf")) for logits in (said.start_logits, said.end_logits))
    return (F.cross_entropy(starts, batch["start_positions"]) + F.cross_entropy(ends, batch["end_positions"])) / 2


def train_plainly(task: str, batch: dict[str, Tensor]) -> list[tuple[float, float]]:
    made = model(task)
    matrices = [p for p in made.parameters() if p.ndim > 1]
    vectors = [p for p in made.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    history = []
    for _ in range(STEPS):
        said = made(**batch)
        loss = said.loss if task != "question_answering" else loss_without_padding(said, batch)
        loss.backward()
        norm = sum(p.grad.double().square().sum() for p in made.parameters() if p.grad is not None).sqrt()  # type: ignore[union-attr]
        torch.nn.utils.clip_grads_with_norm_(made.parameters(), 1.0, norm.float())
        optimizer.step()
        optimizer.zero_grad()
        history.append((loss.item(), norm.item()))
    return history


@pytest.fixture(scope="module")
def histories(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """What every case of a number of processes saw; that is started once for all."""
    folder = tmp_path_factory.mktemp("finetune")
    write_examples(folder)
    for task in TASKS:
        plain.write_checkpoint(weights(task), config(folder, tokenizer, task, {})["model"], folder / "weights" / task)

    @functools.cache
    def of(nproc: int) -> dict[str, Any]:
        cases = [
            {
                "name": case_id(case),
                "config": config(folder, tokenizer, case[0], case[2]),
                "checkpoint": str(folder / "weights" / case[0]),
            }
            for case in CASES
            if case[1] == nproc
        ]
        (folder / f"cases-{nproc}.json").write_text(json.dumps(cases))
        script = Path(__file__).with_name("finetune_layouts.py")
        command = [sys.executable, str(script), str(folder / f"cases-{nproc}.json"), str(folder / f"{nproc}.json")]
        exit_code = run_workers(command, World(nproc), log_dir=folder / "logs")
        assert exit_code == 0, f"see {folder / 'logs'}"
        return json.loads((folder / f"{nproc}.json").read_text())

    return of


@pytest.fixture(scope="module")
def oracle(tokenizer: Path, histories: Any) -> Callable[[str], list[tuple[float, float]]]:
    """What the plain loop saw; after the weights were written."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    return functools.cache(lambda task: train_plainly(task, tensors(task, processor)))


@pytest.mark.parametrize("case", [pytest.param(case, id=case_id(case)) for case in CASES])
def test_equals_plain_pytorch(case: tuple[str, int, dict[str, Any]], histories: Any, oracle: Any) -> None:
    ours, theirs = torch.tensor(histories(case[1])[case_id(case)]), torch.tensor(oracle(case[0]))
    drift = ((ours - theirs) / theirs).abs().amax(1)
    assert drift[0] < 2e-6, drift
    assert drift.max() < 2e-5, drift
