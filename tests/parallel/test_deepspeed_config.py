"""What DeepSpeed is told: whole dictionaries, so that every change is a deliberate one."""

from collections.abc import Callable
from typing import Any

import pytest

from bigtrain.config import Config
from bigtrain.parallel.deepspeed_config import deepspeed_config

ALWAYS = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 1_000_000_000,
}
ZERO = {
    "contiguous_gradients": True,
    "overlap_comm": False,
    "reduce_bucket_size": 50_000_000,
    "allgather_bucket_size": 50_000_000,
}
ZERO_3 = {"stage3_prefetch_bucket_size": 50_000_000, "stage3_param_persistence_threshold": 320}
OFFLOAD = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}


@pytest.mark.parametrize(
    ("precision", "stage", "offload", "zero", "rest"),
    [
        ("fp32", 0, "none", {"stage": 1}, {}),
        ("fp32", 1, "none", {"stage": 1}, {}),
        ("fp32", 2, "none", {"stage": 2}, {}),
        ("fp32", 3, "none", {"stage": 3} | ZERO_3, {}),
        ("bf16", 0, "none", {"stage": 2}, BF16),
        ("bf16", 1, "none", {"stage": 2}, BF16),
        ("bf16", 2, "none", {"stage": 2}, BF16),
        ("bf16", 3, "none", {"stage": 3} | ZERO_3, BF16),
        ("fp32", 1, "optimizer", {"stage": 1} | OFFLOAD, {}),
        ("fp32", 3, "optimizer", {"stage": 3} | ZERO_3 | OFFLOAD, {}),
        ("bf16", 1, "optimizer", {"stage": 2} | OFFLOAD, BF16),
    ],
)
def test_dictionary(
    tiny: Callable[..., Config], precision: str, stage: int, offload: str, zero: dict[str, Any], rest: dict[str, Any]
) -> None:
    config = tiny(f"training.precision={precision}", f"parallel.zero_stage={stage}", f"parallel.offload={offload}")
    assert deepspeed_config(config) == ALWAYS | rest | {"zero_optimization": ZERO | zero}


def test_clipping_and_width_follow_the_configuration(tiny: Callable[..., Config]) -> None:
    told = deepspeed_config(tiny("optimizer.max_grad_norm=0.5", "parallel.zero_stage=3", "model.hidden_size=64"))
    assert told["gradient_clipping"] == 0.5
    assert told["zero_optimization"]["stage3_param_persistence_threshold"] == 640


def test_micro_batches_are_megatrons(tiny: Callable[..., Config]) -> None:
    few, many = tiny("training.micro_batch_size=4"), tiny("training.micro_batch_size=1")
    assert deepspeed_config(few) == deepspeed_config(many)
