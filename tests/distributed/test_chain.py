"""One run carried from layout to layout is the run that was never interrupted."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bigtrain.config import parse_config
from bigtrain.data.samples import Samples
from bigtrain.data.shards import open_dataset
from bigtrain.training.schedule import learning_rate
from bigtrain.verify.chain import Chain, Stretch, run_chain
from bigtrain.verify.legs import Leg, run_legs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 3
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    (4, {"zero_stage": 3}),
    (4, {"pipeline": 2, "virtual_pipeline": 2, "zero_stage": 2}),
    (4, {"context": 2, "tensor": 2}),
    (1, {}),
]


def config(dataset: Path, parallel: dict[str, Any], micro_batch_size: int = 1) -> dict[str, Any]:
    return {
        "model": {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
        "data": {"train": str(dataset / "train")},
        "parallel": parallel,
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 2},
        "training": {
            "output_dir": "unused",
            "steps": STEPS * len(LAYOUTS),
            "global_batch_size": 8,
            "micro_batch_size": micro_batch_size,
            "sequence_length": 32,
            "precision": "fp32",
        },
    }


@pytest.fixture(scope="module")
def chain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    steps = STEPS * len(LAYOUTS)
    alone = [Leg(f"micro-batches of {n}", config(dataset, {}, n), (0, steps), real_data=True) for n in (1, 2, 8)]
    (reference, *controls), exit_code = run_legs(alone, 1, tmp_path_factory.mktemp("chain") / "alone")
    assert exit_code == 0
    stretches = [Stretch(f"{nproc} {parallel}", nproc, config(dataset, parallel)) for nproc, parallel in LAYOUTS]
    return run_chain(stretches, STEPS, reference, controls, "fp32", real_data=True)


def test_every_load_is_bit_equal(chain: Chain) -> None:
    """Master weights and moments, read with plain `torch.distributed.checkpoint` before and after."""
    assert len(chain.arrows) == len(LAYOUTS) - 1
    for arrow in chain.arrows:
        assert arrow.saved == arrow.loaded, f"from {arrow.left} to {arrow.arrived}"
    assert len({arrow.saved.weights for arrow in chain.arrows}) == len(chain.arrows)
    assert len({arrow.saved.moments for arrow in chain.arrows}) == len(chain.arrows)


def test_every_stretch_goes_on_as_if_uninterrupted(chain: Chain) -> None:
    for row in chain.rows:
        assert row.agrees, asdict(row)


def test_the_certificate_tells_samples_and_rate(chain: Chain, dataset: Path) -> None:
    samples = Samples(open_dataset(dataset / "train"), 32, seed=1234, shuffle=True)
    for number, arrow in enumerate(chain.arrows, 1):
        assert arrow.step == STEPS * number
        assert arrow.learning_rate == learning_rate(parse_config(config(dataset, {})), arrow.step - 1)
        first = 8 * STEPS * (number - 1)
        expected = samples.sample_ids(range(first, first + 8 * STEPS)).reshape(STEPS, 8)
        assert arrow.samples == expected.tolist()
