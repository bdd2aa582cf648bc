"""Sequences that processes share: attention is that of the whole sequence, and no token sees a later one."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.config import Config, to_yaml
from bigtrain.data.loader import CausalBatch
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
from bigtrain.parallel.engine import Engine

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RANKS, LENGTH = 4, 16
SHAPES: dict[str, tuple[int, int, int, int, dict[int, str]]] = {
    # heads, key/value heads, sequence length, head size, and which way two and four processes go
    "one-for-each": (8, 8, 24, 8, {2: "a2a", 4: "a2a"}),
    "grouped": (8, 4, 48, 16, {2: "a2a", 4: "a2a"}),
    "grouped-too-few-for-four": (4, 2, 16, 8, {2: "a2a", 4: "p2p"}),
    "one-key-for-all": (4, 1, 24, 8, {2: "p2p", 4: "p2p"}),
    "odd-groups": (6, 3, 16, 8, {2: "p2p", 4: "p2p"}),
    "odd-heads": (3, 3, 208, 4, {2: "p2p", 4: "p2p"}),
    "a-token-a-chunk": (2, 2, 8, 8, {2: "a2a", 4: "p2p"}),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXCHANGE = ["model.num_key_value_heads=4"]  # four heads over four processes; by default there are two, and a ring
MODELS = {
    "heads-over-four": ["parallel.context=4", *EXCHANGE],
    "ring-of-four": ["parallel.context=4"],
    "heads-over-two": ["parallel.context=2"],
    "ring-of-two-and-tensor": ["parallel.context=2", "parallel.tensor=2", "parallel.sequence=true"],
    "heads-over-two-and-tensor": ["parallel.context=2", "parallel.tensor=2", *EXCHANGE],
    "tensor-alone": ["parallel.tensor=2", "parallel.sequence=true"],
}
CHANGED_FROM = (1, 7, 8, 13, 15)
TRAINED = {
    f"{way}-{name}": [*words, *more]
    for way, more in (("heads", EXCHANGE), ("ring", []))
    for name, words in {
        "plain": [],
        "selective": ["training.recompute=selective"],
        "full": ["training.recompute=full", "parallel.zero_stage=3"],
        "learned": ["model.position_embedding=learned", "model.tie_word_embeddings=true", "parallel.zero_stage=2"],
        "layernorm": ["model.normalization=layernorm", "model.linear_bias=true", "parallel.zero_stage=0"],
        "bf16": ["training.precision=bf16"],
    }.items()
}

DROPPING = [*EXCHANGE, "model.attention_dropout=0.3", "training.recompute=selective", "parallel.zero_stage=3"]


def whole_tensors() -> dict[str, list[Tensor]]:
    """Query, key, value and the output's gradient of each shape and type."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, (heads, kv_heads, s, d, _) in SHAPES.items():
        tensors = [torch.randn(s, 2, count, d, generator=generator) for count in (heads, kv_heads, kv_heads, heads)]
        found |= {f"{name}-{kind}": [x.to(dtype) for x in tensors] for kind, dtype in DTYPES.items()}
    return found


def texts(config: Config) -> list[Tensor]:
    """A text, and the same with every token from a place on replaced by another."""
    t = config.training
    tokens = torch.randint(config.model.vocab_size, (2, t.sequence_length), generator=torch.Generator().manual_seed(5))
    other = (tokens + 1) % config.model.vocab_size
    later = torch.arange(t.sequence_length)
    return [tokens, *(torch.where(later >= first, other, tokens) for first in CHANGED_FROM)]


def step_batches(config: Config) -> list[CausalBatch]:
    """Two micro-batches of random text whose early targets do not count, so that processes differ in how many do."""
    t = config.training
    tokens = torch.randint(512, (4, t.sequence_length + 1), generator=torch.Generator().manual_seed(9))
    mask = torch.ones(2, t.sequence_length)
    mask[:, 1:5] = 0
    positions = torch.arange(t.sequence_length).repeat(2, 1)
    return [CausalBatch(part[:, :-1], part[:, 1:], mask, positions) for part in tokens.split(2)]


@pytest.fixture(scope="module")
def seen(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank saw of every case."""
    folder = tmp_path_factory.mktemp("context")
    config = tiny()
    assert config.training.sequence_length == LENGTH
    (folder / "run.yaml").write_text(to_yaml(config))
    torch.save(whole_tensors(), folder / "attention.pt")
    torch.save(texts(config), folder / "texts.pt")
    torch.save([vars(batch) for batch in step_batches(config)], folder / "batches.pt")
    cases: dict[str, Any] = {
        f"attention-{size}": {"kind": "attention", "words": [f"parallel.context={size}"], "tensors": "attention.pt"}
        for size in (2, 4)
    }
    cases |= {name: {"kind": "logits", "words": words, "tensors": "texts.pt"} for name, words in MODELS.items()}
    cases |= {
        name: {"kind": "steps", "words": ["parallel.context=4", *words], "tensors": "batches.pt"}
        for name, words in {**TRAINED, "heads-dropping": DROPPING}.items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, str(Path(__file__).with_name("sharing_sequences.py")), str(folder)]
    assert run_workers(command, World(RANKS), log_dir=folder / "logs") == 0, f"see {folder / 'logs'}"
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def held(rank: int, size: int, length: int) -> list[int]:
    """The positions of a process's part, in their order: a chunk from the front and its mirror image from the end."""
    chunk = length // (2 * size)
    return [
        *range(rank * chunk, (rank + 1) * chunk),
        *range(length - (rank + 1) * chunk, length - rank * chunk),
    ]


def written_out(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradients in float64; query head h uses key/value head h // (heads / kv heads)."""
    q, k, v = (x.double().requires_grad_() for x in (query, key, value))
    share = q.shape[2] // k.shape[2]
    scores = torch.einsum("sbhd,tbhd->bhst", q, k.repeat_interleave(share, 2)) / math.sqrt(q.shape[3])
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    out = torch.einsum("bhst,tbhd->sbhd", weights, v.repeat_interleave(share, 2))
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.double())]


def at_once(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> list[Tensor]:
    """The same by torch's own attention in the tensors' type."""
    given = [x.clone().requires_grad_() for x in (query, key, value)]
    q, k, v = (x.permute(1, 2, 0, 3) for x in given)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out = out.permute(2, 0, 1, 3)
    return [out.detach(), *torch.autograd.grad(out, given, grad)]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [2, 4])
def test_attention_is_that_of_the_whole_sequence(size: int, shape: str, kind: str, seen: list[dict[str, Any]]) -> None:
    """In float32 to its rounding; in bfloat16 the error is no more than twice that of torch's own on the whole."""
    tensors = whole_tensors()[f"{shape}-{kind}"]
    exact, plain = written_out(*tensors), at_once(*tensors)
    for first in range(0, RANKS, size):  # each group of processes that share sequences
        whole = [torch.full_like(x, torch.nan) for x in plain]
        for rank in range(size):
            case = seen[first + rank][f"attention-{size}"]["found"][f"{shape}-{kind}"]
            assert case["method"] == SHAPES[shape][4][size]
            for tensor, part in zip(whole, case["parts"], strict=True):
                assert part.dtype == DTYPES[kind]
                here = held(rank, size, len(tensor))
                tensor[here] = part.view_as(tensor[here])
        for found, expected, by_torch in zip(whole, exact, plain, strict=True):
            if kind == "fp32":
                torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
            else:
                assert (found - expected).norm() <= 2 * (by_torch - expected).norm()


@pytest.mark.parametrize("model", MODELS)
def test_no_logit_moves_with_a_later_token(model: str, seen: list[dict[str, Any]]) -> None:
    """Bit for bit; and each that may move does, but for tokens whose own text is the same."""
    for rank in range(RANKS):
        case = seen[rank][model]
        before, *others = case["logits"]
        here = torch.tensor(held(case["rank"], case["size"], LENGTH))
        for first, after in zip(CHANGED_FROM, others, strict=True):
            assert torch.equal(before[:, here < first], after[:, here < first]), f"a token before {first} saw it"
            moved = (before != after).any(-1)
            assert moved[:, here >= first].all()


@pytest.mark.parametrize("model", MODELS)
def test_every_process_of_a_sequence_has_its_own_part(model: str, seen: list[dict[str, Any]]) -> None:
    size = seen[0][model]["size"]
    positions = sorted(p for rank in range(size) for p in held(rank, size, LENGTH))
    assert positions == list(range(LENGTH))
    assert {seen[rank][model]["rank"] for rank in range(RANKS)} == set(range(size))


@pytest.mark.parametrize("case", TRAINED)
def test_training_is_that_of_one_process(
    case: str, seen: list[dict[str, Any]], tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    config = tiny(*TRAINED[case])
    engine, batches = engine_of(config), step_batches(config)
    targets = float(sum(batch.loss_mask.sum() for batch in batches))
    expected = []
    for step in range(2):
        before = float(engine.evaluate(batches))
        result = engine.train_step(batches, targets, 1e-3, step)
        expected += [before, float(result.loss), float(result.grad_norm)]
    for rank in range(RANKS):
        found = [number for step in seen[rank][case] for number in step]
        assert found == pytest.approx(expected, rel=2e-3 if "bf16" in case else 2e-6)


def test_weights_of_exchanged_heads_are_dropped_in_training_alone(seen: list[dict[str, Any]]) -> None:
    dropping, plain = (seen[0][f"heads-{name}"][0] for name in ("dropping", "plain"))
    assert all(seen[rank]["heads-dropping"] == seen[0]["heads-dropping"] for rank in range(RANKS))
    assert dropping[0] == pytest.approx(plain[0], rel=1e-6)
    assert dropping[1] != pytest.approx(plain[1], rel=1e-4)
    assert dropping[1] == pytest.approx(plain[1], rel=1e-1)
