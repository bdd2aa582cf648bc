"""Rules of T5's options: each broken once."""

from collections.abc import Callable

import pytest

from bigtrain.config import Config, validate
from bigtrain.errors import ConfigError

Bend = Callable[..., Config]

SOUND = ["model.architecture=t5", "model.position_embedding=relative", "model.num_key_value_heads=null"]
BROKEN = [
    (["model.position_embedding=rope"], "model.position_embedding is rope, which model.architecture=t5 cannot have; "),
    (["model.linear_bias=true"], "cannot have; set model.linear_bias=false"),
    (
        ["model.num_experts=4"],
        "model.num_experts is 4, which model.architecture=t5 cannot have; set model.num_experts=",
    ),
    (["parallel.context=2"], "parallel.context is 2, which model.architecture=t5 cannot have; set parallel.context=1"),
    (["data.fim_rate=0.5"], "set data.fim_rate=0.0"),
    (["model.num_key_value_heads=4"], "model.num_key_value_heads (4) is not model.num_attention_heads (8)"),
    (["model.relative_attention_num_buckets=7"], "(7) must be even and at least 4"),
    (["model.relative_attention_max_distance=16"], "(16) must be above half of"),
    (["data.packing=best_fit"], "data.packing=best_fit is not for model.architecture=t5"),
    (["parallel={tensor: 2, sequence: true}", "data.target_length=33"], "data.target_length=34 would fit"),
    (
        ["parallel.pipeline=8", "model.num_decoder_layers=3"],
        "+ model.num_decoder_layers (7) is below parallel.pipeline",
    ),
    (["parallel={pipeline: 2, layers_per_stage: [2, 2]}"], "makes 4 layers, but model.num_hidden_layers + "),
]
OF_GPT = [
    ("model.num_decoder_layers=3", "model.num_decoder_layers (3) is for a T5"),
    ("model.position_embedding=relative", "model.position_embedding (relative) is for a T5"),
    ("data.target_length=64", "data.target_length (64) is for a T5"),
    ("data.objective=ul2", "data.objective (ul2) is for a T5; set model.architecture=t5 or leave data.objective out"),
]


@pytest.mark.parametrize(("words", "message"), BROKEN)
def test_a_broken_rule_is_told(words: list[str], message: str, bend: Bend) -> None:
    validate(bend(*SOUND), 8)
    with pytest.raises(ConfigError) as told:
        validate(bend(*SOUND, *words), 8)
    assert message in str(told.value)


@pytest.mark.parametrize(("word", "message"), OF_GPT)
def test_a_gpt_has_none_of_it(word: str, message: str, bend: Bend) -> None:
    with pytest.raises(ConfigError) as told:
        validate(bend(word), 1)
    assert message in str(told.value)


def test_distances_know_no_longest_sequence(bend: Bend) -> None:
    validate(bend(*SOUND, "training.sequence_length=4096"), 1)
