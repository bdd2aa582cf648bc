"""Which layouts are tried, and on what."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import Config, load_config, validate
from bigtrain.errors import ConfigError
from bigtrain.models.size import parameter_count
from bigtrain.verify.layouts import legal_layouts, name
from bigtrain.verify.layouts_agree import legal
from bigtrain.verify.shrink import shrunken

MODELS = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "runs").glob("*.yaml"))


def ready(path: Path, *words: str) -> Config:
    return load_config(path, ["data.train=x", *words])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_a_small_copy_is_small_and_works(path: Path, world_size: int) -> None:
    big = ready(path)
    small = shrunken(big, world_size, 5, "fp32")
    validate(small.model_copy(update={"parallel": type(big.parallel)(zero_stage=0)}), 1)
    assert parameter_count(small.model) < 6_000_000
    for kept in ("normalization", "hidden_act", "gated_mlp", "tie_word_embeddings", "position_embedding", "rope_theta"):
        assert getattr(small.model, kept) == getattr(big.model, kept)
    grouped = big.model.kv_heads < big.model.num_attention_heads
    assert (small.model.kv_heads < small.model.num_attention_heads) == grouped
    assert small.optimizer == big.optimizer
    assert Config.model_validate(small.model_dump()) == small, "`model_copy` checks nothing"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("world_size", [1, 8])
def test_a_small_copy_of_every_ready_model(path: Path, world_size: int) -> None:
    """Some layers keep a window that ends within the sequence, some none; frequencies stay scaled."""
    words = ["training={output_dir: x, steps: 5, global_batch_size: 8, sequence_length: 4096}"]
    big = ready(path, *words)
    small = shrunken(big, world_size, 5, "fp32")
    validate(small, 1)
    assert Config.model_validate(small.model_dump()) == small
    length = small.training.sequence_length
    assert {bool(window) for window in small.model.windows} == {bool(window) for window in big.model.windows}
    assert all(window < length for window in small.model.windows if window)
    assert (small.model.rope_scaling is None) == (big.model.rope_scaling is None)
    for kept in ("qk_norm", "norm_placement", "zero_centered_norm", "parallel_residual", "partial_rotary_factor"):
        assert getattr(small.model, kept) == getattr(big.model, kept)


def test_longrope_keeps_a_factor_for_each_frequency(tiny: Callable[..., Config]) -> None:
    factors = f"short_factor: {[1.0 + i for i in range(24)]}, long_factor: {[2.0 + i for i in range(24)]}"
    scaling = f"{{rope_type: longrope, original_max_position_embeddings: 32, {factors}}}"
    config = tiny("model.head_dim=64", "model.partial_rotary_factor=0.75", f"model.rope_scaling={scaling}")
    small = shrunken(config, 2, 5, "fp32")
    validate(small, 1)
    assert small.model.rope_scaling is not None
    assert small.model.rope_scaling.short_factor == [1.0 + 24 * i // 9 for i in range(9)]
    assert small.model.rope_scaling.original_max_position_embeddings == 8


def test_every_legal_layout_is_tried_once(tiny: Callable[..., Config]) -> None:
    config = tiny("training.global_batch_size=16", "model.num_hidden_layers=4")
    found = [name(layout, 4) for layout in legal_layouts(config, shrunken(config, 4, 5, "fp32"), 4, ())]
    assert len(found) == len(set(found))
    shapes = {word.rpartition(" ZeRO-")[0] for word in found}
    assert {
        "DP4",
        "TP2 DP2",
        "TP2+SP DP2",
        "PP2 DP2",
        "PP2 VPP2 DP2",
        "PP4",
        "TP2 PP2",
        "TP2+SP PP2",
        "TP2+SP PP2 VPP2",
    } <= shapes
    assert len(found) == 4 * len(shapes), "every ZeRO stage in each"


def test_the_users_own_limits_count(tiny: Callable[..., Config]) -> None:
    """515 rows do not split among two processes."""
    config = tiny("model.vocab_size=515")
    assert not [layout for layout in legal_layouts(config, shrunken(config, 2, 5, "fp32"), 2, ()) if layout.tensor > 1]


def test_where_no_layout_is_legal_it_is_told_why(tiny: Callable[..., Config]) -> None:
    config = tiny("training.steps=4", "schedule.warmup_steps=300")
    with pytest.raises(ConfigError, match=r"no layout of 2 processes .*: schedule\.warmup_steps \(300\) is above"):
        legal(config, shrunken(config, 2, 5, "fp32"), 2, ())


def test_experts_are_spread_in_every_way(tiny: Callable[..., Config]) -> None:
    config = tiny("model.num_experts=64", "model.num_experts_per_tok=6", "parallel.layers_per_stage=[2]")
    small = shrunken(config, 2, 5, "fp32")
    assert (small.model.num_experts, small.model.num_experts_per_tok) == (4, 4)
    found = {name(layout, 2) for layout in legal_layouts(config, small, 2, ())}
    assert {word for word in found if "EP2" in word} == {
        f"{shape} ZeRO-{stage}" for shape in ("TP2+SP EP2", "CP2 EP2", "EP2 DP2") for stage in (1, 2)
    }
    assert {"PP2 ZeRO-3", "DP2 ZeRO-0"} <= found


def test_what_is_pinned_stays(tiny: Callable[..., Config]) -> None:
    config = tiny("parallel.zero_stage=2", "parallel.tensor=2")
    layouts = legal_layouts(config, shrunken(config, 2, 5, "fp32"), 2, ["zero_stage", "tensor"])
    assert [name(layout, 2) for layout in layouts] == ["TP2 ZeRO-2", "TP2+SP ZeRO-2"]
