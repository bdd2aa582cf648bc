"""Fine-tuning trains what plain PyTorch trains on `transformers`' models with the same head, in every layout."""

import copy
import csv
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
from bigtrain.prepare.train_tokenizer import train_wordpiece

sys.path.insert(0, str(Path(__file__).parent))
import plain
import plain_bert
import plain_lora
import plain_t5

pytestmark = pytest.mark.distributed

STEPS, EXAMPLES, LENGTH, LR = 3, 8, 64, 1e-3
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"zero_stage": 3}],
    2: [{"tensor": 2, "sequence": True}, {"pipeline": 2}, {"zero_stage": 2}],
}
TASKS = ["classification", "regression", "tagging", "question_answering"]
SEQUENCES = "sequence_to_sequence"
MODELS = [*((architecture, task) for architecture in ("gpt", "bert") for task in TASKS)]
MODELS += [("gpt", SEQUENCES), ("t5", SEQUENCES)]
Case = tuple[str, str, int, dict[str, Any], str]
CASES: list[Case] = [
    (architecture, task, nproc, parallel, "all")
    for nproc, layouts in LAYOUTS.items()
    for parallel in layouts
    for architecture, task in MODELS
    # ZeRO knows no heads, and a number comes from the same place as a class.
    if (architecture, task) == ("gpt", "classification")
    or ("zero_stage" not in parallel and (nproc, task) != (2, "regression"))
]
PARTS: dict[str, dict[str, Any]] = {
    "all": {},
    "adapters": {"lora": {"r": 4, "lora_alpha": 6.0}},
    "adapters-of-some": {"lora": {"r": 4, "lora_alpha": 6.0, "target_modules": ["q_proj", "v_proj", "up_proj"]}},
    "upper": {"freeze": 1},
    "head": {"freeze": "all"},
    "mean": {"classifier_pooling": "mean"},
}
"""What is trained, and what is read."""
TENSOR, PIPELINE = LAYOUTS[2][:2]
CASES += [
    ("gpt", "classification", 1, {"zero_stage": 3}, "adapters"),
    ("bert", "classification", 1, {}, "head"),
    *(("bert", "classification", nproc, parallel, "mean") for nproc, parallel in ((1, {}), (2, TENSOR), (2, PIPELINE))),
    *(("gpt", "classification", 2, parallel, "adapters") for parallel in (TENSOR, PIPELINE, {"zero_stage": 2})),
    ("gpt", "classification", 2, {"zero_stage": 3}, "adapters-of-some"),
    *(("bert", "classification", 2, parallel, "adapters") for parallel in (TENSOR, {"tensor": 2})),
    *(("bert", "tagging", 2, parallel, "adapters-of-some") for parallel in (PIPELINE, {"zero_stage": 0})),
    *(("gpt", SEQUENCES, 2, parallel, "adapters") for parallel in (TENSOR, PIPELINE)),
    ("t5", SEQUENCES, 2, TENSOR, "adapters"),
    ("t5", SEQUENCES, 2, PIPELINE, "adapters-of-some"),
    # here the first stage trains nothing
    *(("gpt", "classification", 2, parallel, "upper") for parallel in (PIPELINE, {"zero_stage": 3})),
    *(("bert", "classification", 2, parallel, "head") for parallel in (TENSOR, PIPELINE)),
    ("t5", SEQUENCES, 2, PIPELINE, "upper"),
]

WORDS = ["import", "json", "class", "value", "return", "self", "none", "true", "async", "def", "wait", "loop", "event"]
TEXTS = [" ".join(WORDS[i % 4 : i % 4 + 3 + i]) for i in range(EXAMPLES)]
SECOND = [" ".join(WORDS[i : i + 2]) for i in range(EXAMPLES)]
CLASSES = [["a", "b", "c"][i % 3] for i in range(EXAMPLES)]
NUMBERS = [0.5 * i - 1 for i in range(EXAMPLES)]
TAGS = [[("O", "B-X", "I-X", "O", "B-Y")[j % 5] for j in range(len(text.split()))] for text in TEXTS]
LABELS = ["O", "B-X", "I-X", "B-Y"]


def case_id(case: Case) -> str:
    architecture, task, nproc, parallel, part = case
    layout = (f"{key}-{value}" for key, value in parallel.items())
    return "_".join([architecture, task, f"{nproc}-processes", *layout, *([] if part == "all" else [part])])


def write_examples(folder: Path) -> None:
    """The examples of every task, as a user has them."""
    for task, values in (("classification", CLASSES), ("regression", NUMBERS)):
        with (folder / f"{task}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "second", "label"])
            writer.writerows(zip(TEXTS, SECOND, values, strict=True))
    with (folder / f"{SEQUENCES}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *zip(TEXTS, SECOND, strict=True)])
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


SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
OURS: dict[str, dict[str, Any]] = {
    "gpt": {"num_key_value_heads": 4},
    "bert": {
        "architecture": "bert",
        "position_embedding": "learned",
        "normalization": "layernorm",
        "norm_eps": 1e-12,
        "hidden_act": "gelu",
        "gated_mlp": False,
        "linear_bias": True,
    },
    "t5": {
        "architecture": "t5",
        "num_hidden_layers": plain_t5.SHAPES["v1.0"][0],
        "num_decoder_layers": plain_t5.SHAPES["v1.0"][1],
        "num_attention_heads": plain_t5.HEADS,
        "head_dim": plain_t5.HEAD_SIZE,
        "intermediate_size": 96,
        "position_embedding": "relative",
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "norm_eps": 1e-6,
        "hidden_act": "relu",
        "gated_mlp": False,
    },
}


def config(folder: Path, architecture: str, task: str, parallel: dict[str, Any], part: str = "all") -> dict[str, Any]:
    file = next(folder.glob(f"{task}.*"))
    labels = {"classification": ["a", "b", "c"], "tagging": LABELS}.get(task)
    finetune = {"task": task, "train": str(file), "labels": labels, "prompt": "{source} =", **PARTS[part]}
    columns = {"text_pair": "second"} if task in ("classification", "regression") else {}
    return {
        "model": SHAPE | OURS[architecture],
        "tokenizer": {"path": str(folder / architecture)},
        "finetune": finetune | {"columns": columns},
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
def model(architecture: str, task: str) -> Any:
    """A tiny random one with the task's head, in float32."""
    if architecture == "t5":
        return plain_t5.t5(SHAPE["vocab_size"], "v1.0")
    torch.manual_seed(7)
    options = {
        **SHAPE,
        "num_labels": {"classification": 3, "regression": 1, "tagging": len(LABELS)}.get(task, 2),
        "problem_type": "regression" if task == "regression" else None,
        "classifier_dropout": 0.0,
    }
    if architecture == "gpt":
        llama = LlamaConfig(**options, num_key_value_heads=4, rms_norm_eps=1e-5, pad_token_id=0, use_cache=False)
        made = {
            "tagging": LlamaForTokenClassification,
            "question_answering": LlamaForQuestionAnswering,
            SEQUENCES: LlamaForCausalLM,
        }.get(task, LlamaForSequenceClassification)(llama)
    else:
        bert = BertConfig(**options, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0)
        made = {
            "tagging": BertForTokenClassification,
            "question_answering": BertForQuestionAnswering,
        }.get(task, BertForSequenceClassification)(bert)
    with torch.no_grad():  # norms of exactly one and biases of exactly zero would hide that they are not applied
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


class MeanPooled(torch.nn.Module):
    """A BERT whose class is read from the mean of all tokens, as ModernBERT's `classifier_pooling` has it."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.made = bert

    def forward(self, labels: Tensor, **batch: Tensor) -> Any:
        hidden, mask = self.made.bert(**batch).last_hidden_state, batch["attention_mask"]
        mean = torch.stack([row[seen.bool()].mean(0) for row, seen in zip(hidden, mask, strict=True)])
        logits = self.made.classifier(self.made.bert.pooler.dense(mean).tanh())
        return SimpleNamespace(loss=F.cross_entropy(logits, labels))


@functools.cache
def part_of_model(architecture: str, task: str, part: str) -> tuple[Any, dict[str, Tensor]]:
    """The model that is trained plainly, and its adapters."""
    options = PARTS[part]
    if "lora" in options:
        return plain_lora.adapted(model(architecture, task), architecture, options["lora"])
    if "classifier_pooling" in options:
        return MeanPooled(copy.deepcopy(model(architecture, task))), {}
    if "freeze" in options:
        return plain_lora.trains_a_part(model(architecture, task), options["freeze"]), {}
    return model(architecture, task), {}


def weights(architecture: str, task: str) -> dict[str, Tensor]:
    made = model(architecture, task)
    if task == SEQUENCES:
        return plain_t5.megatron_weights(made) if architecture == "t5" else plain.megatron_weights(made)
    answers = task == "question_answering"
    if architecture == "gpt":
        body: Any = SimpleNamespace(config=made.config, model=made.transformer if answers else made.model)
        found = plain.megatron_weights(body)
        head = made.qa_outputs if answers else made.score
    else:
        unused = BertForPreTraining(made.config).cls
        found = plain_bert.megatron_weights(SimpleNamespace(config=made.config, bert=made.bert, cls=unused))  # type: ignore[arg-type]
        head = made.qa_outputs if answers else made.classifier
    return found | {f"head.{name}": value.detach() for name, value in head.named_parameters()}


class Pieces:
    """A text's pieces and their characters, by the tokenizers' own packages; and how texts are framed."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self.bert, self.t5 = architecture == "bert", architecture == "t5"
        if self.bert:
            self.fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "bert" / "tokenizer.json"))
            self.begin, self.end = self.fast.convert_tokens_to_ids(["[CLS]", "[SEP]"])
        else:
            self.processor = sentencepiece.SentencePieceProcessor(
                model_file=str(folder / architecture / "tokenizer.model")
            )
            self.end = self.processor.eos_id()

    def of(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and for each the first of its characters that is no space."""
        if self.bert:
            found = self.fast(text, add_special_tokens=False, return_offsets_mapping=True)
            return found["input_ids"], [begin for begin, _ in found["offset_mapping"]]
        pieces = self.processor.encode(text, out_type=str)
        begins, place = [], 0
        for piece in pieces:
            begins.append(place + (piece.startswith("▁") and piece != "▁"))
            place += len(piece)
        return self.processor.piece_to_id(pieces), begins

    def framed(self, first: list[int], second: list[int] | None = None) -> list[int]:
        head = [self.begin] if self.bert else []
        return [*head, *first, self.end, *([*second, self.end] if second is not None else [])]


def tensors(task: str, pieces: Pieces) -> dict[str, Tensor]:
    """The one batch that holds all examples, as `transformers` wants it."""
    rows, firsts, labels = [], [], []
    shift = int(pieces.bert)
    if task == SEQUENCES:
        return text_pairs(pieces)
    for i, text in enumerate(TEXTS):
        ids, begins = pieces.of(text)
        first, second = ids, None
        if task in ("classification", "regression"):
            second = pieces.of(SECOND[i])[0]
            labels.append(["a", "b", "c"].index(CLASSES[i]) if task == "classification" else NUMBERS[i])
        if task == "tagging":
            at = [text.index(word) for word in text.split()]
            tags = [LABELS.index(TAGS[i][at.index(begin)]) if begin in at else -100 for begin in begins]
            labels.append([*[-100] * shift, *tags, -100])
        if task == "question_answering":
            first, second = pieces.of(WORDS[i])[0], ids
            word = text.split()[i % 3]
            inside = [place for place, begin in enumerate(begins) if 0 <= begin - text.index(word) < len(word)]
            before = len(pieces.framed(first))
            nowhere = 0 if pieces.bert else before + len(ids)
            labels.append([before + inside[0], before + inside[-1]] if i % 4 else [nowhere, nowhere])
        rows.append(pieces.framed(first, second))
        firsts.append(len(pieces.framed(first)))
    longest = max(map(len, rows))

    def padded(lists: list[list[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in lists])

    given = {"input_ids": padded(rows, 0), "attention_mask": padded([[1] * len(row) for row in rows], 0)}
    if pieces.bert:
        kinds = [[int(place >= first) for place in range(len(row))] for row, first in zip(rows, firsts, strict=True)]
        given["token_type_ids"] = padded(kinds, 0)
    if task == "tagging":
        return {**given, "labels": padded(labels, -100)}
    if task == "question_answering":
        starts, ends = torch.tensor(labels).T
        return {**given, "start_positions": starts, "end_positions": ends}
    return {**given, "labels": torch.tensor(labels)}


def text_pairs(pieces: Pieces) -> dict[str, Tensor]:
    """Prompts and what is to follow, as one text or as two."""
    sources = [pieces.of(f"{text} =")[0] for text in TEXTS]
    targets = [[*pieces.of(text)[0], pieces.end] for text in SECOND]
    if pieces.t5:
        rows, labels = [[*source, pieces.end] for source in sources], targets
    else:
        rows = [[*source, *target] for source, target in zip(sources, targets, strict=True)]
        labels = [[*[-100] * len(source), *target] for source, target in zip(sources, targets, strict=True)]

    def padded(lists: list[list[int]], value: int) -> Tensor:
        longest = max(map(len, lists))
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in lists])

    mask = padded([[1] * len(row) for row in rows], 0)
    return {"input_ids": padded(rows, 0), "attention_mask": mask, "labels": padded(labels, -100)}


def loss_without_padding(said: Any, batch: dict[str, Tensor]) -> Tensor:
    """`transformers` looks for answers in padding as well, so that its loss depends on how much there is."""
    hidden = batch["attention_mask"] == 0
    starts, ends = (logits.masked_fill(hidden, float("-inf")) for logits in (said.start_logits, said.end_logits))
    return (F.cross_entropy(starts, batch["start_positions"]) + F.cross_entropy(ends, batch["end_positions"])) / 2


def train_plainly(
    architecture: str, task: str, part: str, batch: dict[str, Tensor], start: int
) -> list[tuple[float, float]]:
    made, _ = part_of_model(architecture, task, part)
    if architecture == "t5":
        made.config.decoder_start_token_id = start
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


def place(folder: Path, *names: str) -> Path:
    """Where a model's weights lie."""
    return folder.joinpath("weights", *names)


@pytest.fixture(scope="module")
def folder(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples, tokenizers, and the models' weights as checkpoints."""
    made = tmp_path_factory.mktemp("finetune")
    write_examples(made)
    for architecture in ("gpt", "t5"):
        (made / architecture).mkdir()
        shutil.copy(tokenizer, made / architecture / "tokenizer.model")
    train_wordpiece([*TEXTS, *SECOND], made / "bert", 72)
    for architecture, task, part in {(case[0], case[1], case[4]) for case in CASES}:
        shape = config(made, architecture, task, {})["model"]
        _, adapters = part_of_model(architecture, task, part)
        whole = weights(architecture, task) | adapters
        trained = {} if part == "mean" else PARTS[part]
        plain.write_checkpoint(whole, shape, place(made, architecture, task, part), trained=trained)
    return made


@pytest.fixture(scope="module")
def histories(folder: Path) -> Callable[[int], dict[str, Any]]:
    """What every case of a number of processes saw; that is started once for all."""

    @functools.cache
    def of(nproc: int) -> dict[str, Any]:
        cases = [
            {
                "name": case_id(case),
                "config": config(folder, architecture, task, parallel, part),
                "checkpoint": str(place(folder, architecture, task, part)),
            }
            for case in CASES
            for architecture, task, count, parallel, part in [case]
            if count == nproc
        ]
        (folder / f"cases-{nproc}.json").write_text(json.dumps(cases))
        script = Path(__file__).with_name("finetune_layouts.py")
        command = [sys.executable, str(script), str(folder / f"cases-{nproc}.json"), str(folder / f"{nproc}.json")]
        exit_code = run_workers(command, World(nproc), log_dir=folder / "logs")
        assert exit_code == 0, f"see {folder / 'logs'}"
        return json.loads((folder / f"{nproc}.json").read_text())

    return of


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Callable[[str, str, str], list[tuple[float, float]]]:
    """What the plain loop saw; after the weights were written."""

    @functools.cache
    def of(architecture: str, task: str, part: str) -> list[tuple[float, float]]:
        pieces = Pieces(architecture, folder)
        return train_plainly(architecture, task, part, tensors(task, pieces), pieces.end)

    return of


@pytest.mark.parametrize("case", [pytest.param(case, id=case_id(case)) for case in CASES])
def test_equals_plain_pytorch(case: Case, histories: Any, oracle: Any) -> None:
    architecture, task, nproc, _, part = case
    ours, theirs = torch.tensor(histories(nproc)[case_id(case)]), torch.tensor(oracle(architecture, task, part))
    drift = ((ours - theirs) / theirs).abs().amax(1)
    assert drift[0] < 2e-6, drift
    assert drift.max() < 2e-5, drift
