"""Rules between options: each broken once, and what any accepted layout promises."""

import re
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bigtrain.config import Config, data_parallel_size, micro_batches, parse_config, validate
from bigtrain.errors import ConfigError

Bend = Callable[..., Config]

RULES = [
    # world size, overrides, the whole message, remedies that it leads to
    (
        1,
        "model.num_attention_heads=7 model.num_key_value_heads=7",
        "model.hidden_size (64) is not divisible by model.num_attention_heads (7): heads are of one size; "
        "model.num_attention_heads could be 1, 2, 4, 8, 16, 32 or 64, or set model.head_dim",
        ["model.num_attention_heads=8 model.num_key_value_heads=8", "model.head_dim=8"],
    ),
    (
        1,
        "model.num_key_value_heads=3",
        "model.num_attention_heads (8) is not divisible by model.num_key_value_heads (3): each key/value head "
        "serves the same number of query heads; model.num_key_value_heads could be 1, 2, 4 or 8",
        [
            "model.num_key_value_heads=1",
            "model.num_key_value_heads=2",
            "model.num_key_value_heads=4",
            "model.num_key_value_heads=8",
        ],
    ),
    (
        1,
        "model.head_dim=9",
        "the head size (9) is odd: rotary positions turn pairs; give an even model.head_dim",
        ["model.head_dim=10"],
    ),
    (
        8,
        "parallel.tensor=8",
        "model.num_key_value_heads (4) is not divisible by parallel.tensor (8): each process of the tensor group "
        "holds an equal share; parallel.tensor could be 1, 2 or 4",
        ["parallel.tensor=1", "parallel.tensor=2", "parallel.tensor=4"],
    ),
    (
        3,
        "parallel.tensor=3",
        "model.num_attention_heads (8), model.intermediate_size (256), model.num_key_value_heads (4) are not "
        "divisible by parallel.tensor (3): each process of the tensor group holds an equal share; "
        "parallel.tensor could be 1, 2 or 4",
        [],
    ),
    (
        2,
        "parallel.tensor=2 model.vocab_size=50257",
        "model.vocab_size (50257) is not divisible by parallel.tensor (2): each process of the tensor group holds "
        "an equal share of rows; model.vocab_size=50432 would fit",
        ["model.vocab_size=50432"],
    ),
    (
        1,
        "training.sequence_length=4096",
        "training.sequence_length (4096) is above model.max_position_embeddings (2048); lower one or raise the other",
        ["training.sequence_length=2048", "model.max_position_embeddings=4096"],
    ),
    (
        4,
        "parallel.tensor=4 parallel.sequence=true training.sequence_length=126",
        "training.sequence_length (126) is not divisible by parallel.tensor (4): with parallel.sequence each "
        "process holds as many tokens; training.sequence_length=128 would fit",
        ["training.sequence_length=128"],
    ),
    (
        1,
        "parallel.virtual_pipeline=2",
        "parallel.virtual_pipeline (2) cuts the stages of a pipeline into chunks, but parallel.pipeline is 1; set "
        "parallel.virtual_pipeline=1 or raise parallel.pipeline",
        ["parallel.virtual_pipeline=1"],
    ),
    (
        8,
        "parallel.pipeline=8",
        "model.num_hidden_layers (4) is below parallel.pipeline (8): each stage holds at least one layer; lower "
        "parallel.pipeline or add layers",
        ["model.num_hidden_layers=8"],
    ),
    (
        2,
        "parallel.pipeline=2 parallel.virtual_pipeline=4",
        "model.num_hidden_layers (4) is below parallel.pipeline (2) x parallel.virtual_pipeline (4): each chunk holds "
        "at least one layer; lower one of the two or add layers",
        ["parallel.virtual_pipeline=2", "parallel.virtual_pipeline=1", "model.num_hidden_layers=9"],
    ),
    (
        2,
        "parallel.pipeline=2 parallel.virtual_pipeline=2 parallel.layers_per_stage=[1,3]",
        "parallel.layers_per_stage has 2 numbers for parallel.pipeline (2) x parallel.virtual_pipeline (2): give 4, one"
        " a chunk in the order of the model, or leave it out to have the layers balanced",
        ["parallel.layers_per_stage=[1,1,1,1]", "parallel.layers_per_stage=null"],
    ),
    (
        2,
        "parallel.pipeline=2 parallel.layers_per_stage=[3,2]",
        "parallel.layers_per_stage (3 + 2) makes 5 layers, but model.num_hidden_layers is 4",
        ["parallel.layers_per_stage=[3,1]", "model.num_hidden_layers=5"],
    ),
    (
        2,
        "parallel.expert=2",
        "parallel.expert (2) is for a mixture of experts; set model.num_experts or leave parallel.expert out",
        ["model.num_experts=4", "parallel.expert=1"],
    ),
    (
        1,
        "model.moe_intermediate_size=64",
        "model.moe_intermediate_size (64) is for a mixture of experts; set model.num_experts or leave "
        "model.moe_intermediate_size out",
        ["model.num_experts=4"],
    ),
    (
        1,
        "model.num_experts=4 model.num_experts_per_tok=5",
        "model.num_experts_per_tok (5) is above model.num_experts (4)",
        ["model.num_experts_per_tok=4", "model.num_experts=5"],
    ),
    (
        1,
        "model.num_experts=4 model.num_experts_per_tok=1",
        "model.num_experts_per_tok is 1 and model.norm_topk_prob makes the weight of the one expert 1 whatever the "
        "router says, so that it would learn nothing; set model.norm_topk_prob=false",
        ["model.norm_topk_prob=false"],
    ),
    (
        1,
        "model.num_experts=4 model.linear_bias=true",
        "model.linear_bias is true, but Megatron-core's experts have no biases; set model.linear_bias=false",
        ["model.linear_bias=false"],
    ),
    (
        2,
        "model.num_experts=4 parallel.tensor=2",
        "parallel.tensor (2) with experts needs parallel.sequence=true: each process of the tensor group routes its "
        "own part of the sequence",
        ["parallel.sequence=true"],
    ),
    (
        4,
        "model.num_experts=6 parallel.expert=4",
        "parallel.expert (4) does not divide both model.num_experts (6) and the 4 processes of a stage (tensor "
        "x context x data): each holds as many experts; parallel.expert could be 1 or 2",
        ["parallel.expert=1", "parallel.expert=2"],
    ),
    (
        2,
        "model.num_experts=4 parallel.expert=2 parallel.zero_stage=3",
        "parallel.zero_stage=3 cannot be had with experts and parallel.expert (2): experts lie on other processes than "
        "the rest of the layer, and DeepSpeed's stage 3 cuts all weights over the same processes; set "
        "parallel.zero_stage=1 or 2",
        ["parallel.zero_stage=1", "parallel.zero_stage=2", "parallel.expert=1"],
    ),
    (
        2,
        "model.num_experts=4 parallel.tensor=2 parallel.sequence=true parallel.zero_stage=0",
        "parallel.zero_stage=0 cannot be had with experts and parallel.tensor (2): experts lie on other processes than "
        "the rest of the layer, and without ZeRO each process counts the gradient norm from its own copy of the model; "
        "set parallel.zero_stage=1 or 2",
        ["parallel.zero_stage=1", "parallel.zero_stage=2", "parallel.tensor=1"],
    ),
    (
        6,
        "parallel.tensor=2 parallel.pipeline=2",
        "tensor(2) x context(1) x pipeline(2) x data(?) does not make world size 6: start 4 or 8 processes, or change "
        "parallel.tensor, parallel.context or parallel.pipeline",
        ["parallel.tensor=1 parallel.pipeline=1 training.global_batch_size=12"],
    ),
    (
        1,
        "parallel.tensor=2",
        "tensor(2) x context(1) x pipeline(1) x data(?) does not make world size 1: start 2 or 4 processes, or change "
        "parallel.tensor, parallel.context or parallel.pipeline",
        ["parallel.tensor=1"],
    ),
    (
        3,
        "parallel.context=2",
        "tensor(1) x context(2) x pipeline(1) x data(?) does not make world size 3: start 2 or 4 processes, or change "
        "parallel.tensor, parallel.context or parallel.pipeline",
        ["parallel.context=3 training.sequence_length=120 training.micro_batch_size=4"],
    ),
    (
        4,
        "parallel.context=4 training.sequence_length=126",
        "training.sequence_length (126) is not divisible by 8: with parallel.context (4) each process holds two "
        "equally long pieces of it; training.sequence_length=128 would fit",
        ["training.sequence_length=128"],
    ),
    (
        8,
        "parallel.context=2 parallel.tensor=4 parallel.sequence=true training.sequence_length=124",
        "training.sequence_length (124) is not divisible by 8: with parallel.context (2) each process holds two "
        "equally long pieces of it, which parallel.sequence splits over parallel.tensor (4); "
        "training.sequence_length=128 would fit",
        ["training.sequence_length=128"],
    ),
    (
        8,
        "parallel.context=4 parallel.tensor=2 model.attention_dropout=0.1",
        "model.attention_dropout (0.1) cannot be had with parallel.context (4), which does not divide the 4 query and "
        "2 key/value heads of a process: keys and values go around a ring, whose blocks drop nothing; set "
        "model.attention_dropout=0.0, or parallel.context could be 1 or 2",
        ["model.attention_dropout=0.0", "parallel.context=2", "parallel.context=1"],
    ),
    (
        4,
        "training.micro_batch_size=3",
        "training.micro_batch_size (3) x data parallel (4) does not divide training.global_batch_size (16); try "
        "training.micro_batch_size=2 or 4",
        ["training.micro_batch_size=2", "training.micro_batch_size=4"],
    ),
    (
        4,
        "training.global_batch_size=10",
        "training.micro_batch_size (2) x data parallel (4) does not divide training.global_batch_size (10); try "
        "training.global_batch_size=16",
        ["training.global_batch_size=16"],
    ),
    (
        4,
        "parallel.pipeline=4 model.num_hidden_layers=8 parallel.virtual_pipeline=2 training.micro_batch_size=8",
        "the interleaved schedule moves micro-batches in groups of parallel.pipeline (4), which does not divide "
        "their number (2); set parallel.virtual_pipeline=1 or try training.global_batch_size=32",
        ["parallel.virtual_pipeline=1", "training.global_batch_size=32"],
    ),
    (
        1,
        "model.qkv_bias=true model.linear_bias=true",
        "model.qkv_bias and model.linear_bias are both true; linear_bias includes qkv_bias: leave the latter out",
        ["model.qkv_bias=false"],
    ),
    (
        2,
        "parallel.zero_stage=0 parallel.offload=optimizer",
        "parallel.offload=optimizer needs parallel.zero_stage 1, 2 or 3: DeepSpeed's offload moves the partition "
        "of the optimizer's state, which stage 0 does not make",
        ["parallel.zero_stage=1", "parallel.zero_stage=2", "parallel.zero_stage=3"],
    ),
    (
        1,
        "schedule.warmup_steps=101",
        "schedule.warmup_steps (101) is above training.steps (100); the warm-up would never end",
        ["schedule.warmup_steps=100"],
    ),
    (
        1,
        "schedule.name=wsd",
        "schedule.decay_steps (0) must be between 1 and training.steps - schedule.warmup_steps (100) for "
        "schedule.name=wsd",
        ["schedule.decay_steps=1", "schedule.decay_steps=100"],
    ),
    (
        1,
        "schedule.name=wsd schedule.warmup_steps=60 schedule.decay_steps=41",
        "schedule.decay_steps (41) must be between 1 and training.steps - schedule.warmup_steps (40) for "
        "schedule.name=wsd",
        ["schedule.decay_steps=40"],
    ),
    (
        1,
        "schedule.decay_steps=5",
        "schedule.decay_steps (5) belongs to schedule.name=wsd, but cosine falls until the last step; leave it out"
        " or set schedule.name=wsd",
        ["schedule.decay_steps=0", "schedule.name=wsd"],
    ),
    (
        1,
        "checkpoint.interval=100 checkpoint.keep_every=250",
        "checkpoint.keep_every (250) is not a multiple of checkpoint.interval (100): what is to be kept must be "
        "saved; try checkpoint.keep_every=300",
        ["checkpoint.keep_every=300", "checkpoint.keep_every=0"],
    ),
    (
        1,
        "checkpoint.interval=0 checkpoint.keep_every=250",
        "checkpoint.keep_every (250) is not a multiple of checkpoint.interval (0): what is to be kept must be "
        "saved; give an interval",
        ["checkpoint.interval=125"],
    ),
    (
        1,
        "schedule.name=constant schedule.decay_steps=5",
        "schedule.decay_steps (5) belongs to schedule.name=wsd, but constant never falls; leave it out or set "
        "schedule.name=wsd",
        ["schedule.decay_steps=0", "schedule.name=wsd"],
    ),
    (
        1,
        "data.validation=null training.validation_interval=10",
        "training.validation_interval (10) asks for validation, but data.validation names no dataset; give one or "
        "set training.validation_interval=0",
        ["training.validation_interval=0", "data.validation=there"],
    ),
]


@pytest.mark.parametrize(("world_size", "overrides", "told", "remedies"), RULES, ids=[rule[1] for rule in RULES])
def test_rule(bend: Bend, world_size: int, overrides: str, told: str, remedies: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(bend(*overrides.split()), world_size)
    assert str(caught.value) == told
    for remedy in remedies:
        validate(bend(*overrides.split(), *remedy.split()), world_size)


def test_the_numbers_of_processes_that_a_message_offers_are_accepted(bend: Bend) -> None:
    for world_size in (4, 8):  # of "start 4 or 8 processes" for 6
        validate(bend("parallel.tensor=2", "parallel.pipeline=2"), world_size)
    for tensor in (1, 2, 4):
        validate(bend(f"parallel.tensor={tensor}"), tensor)


def test_several_problems_are_told_together(bend: Bend) -> None:
    config = bend("parallel.pipeline=5", "schedule.warmup_steps=200", "training.sequence_length=9999")
    with pytest.raises(ConfigError) as caught:
        validate(config, 4)
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "training.sequence_length",
        "model.num_hidden_layers",
        "tensor(1)",
        "schedule.warmup_steps",
    ]


def test_learned_positions_take_odd_heads(bend: Bend) -> None:
    validate(bend("model.head_dim=9", "model.position_embedding=learned"), 1)


SMALL = st.sampled_from([1, 2, 3, 4, 6, 8])
LAYOUTS = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {
                "vocab_size": st.sampled_from([96, 100, 256]),
                "hidden_size": st.sampled_from([48, 64, 96]),
                "num_hidden_layers": st.sampled_from([2, 4, 6, 8, 12]),
                "num_attention_heads": st.sampled_from([4, 6, 8, 12]),
                "num_key_value_heads": st.sampled_from([None, 1, 2, 4]),
                "intermediate_size": st.sampled_from([None, 90, 192]),
                "num_experts": st.sampled_from([None, None, 4, 6]),
            }
        ),
        "data": st.just({"train": "x"}),
        "parallel": st.fixed_dictionaries(
            {
                "tensor": SMALL,
                "context": st.sampled_from([1, 2, 3, 4]),
                "pipeline": SMALL,
                "virtual_pipeline": st.sampled_from([1, 2, 3]),
                "sequence": st.booleans(),
                "expert": st.sampled_from([1, 1, 2, 4]),
                "zero_stage": st.sampled_from([0, 1, 2, 3]),
                "offload": st.sampled_from(["none", "optimizer"]),
            }
        ),
        "training": st.fixed_dictionaries(
            {
                "output_dir": st.just("x"),
                "steps": st.just(10),
                "global_batch_size": st.sampled_from([4, 8, 12, 16, 24, 48]),
                "micro_batch_size": SMALL,
                "sequence_length": st.sampled_from([16, 18, 24]),
            }
        ),
    }
)


@settings(deadline=None, max_examples=400)  # about one in twelve is accepted
@given(tree=LAYOUTS, data=SMALL)
def test_an_accepted_layout_gives_whole_shares_and_nothing_is_changed(tree: dict, data: int) -> None:
    config = parse_config(tree)
    before = config.model_dump_json()
    m, p, t = config.model, config.parallel, config.training
    world_size = p.tensor * p.context * p.pipeline * data
    try:
        validate(config, world_size)
        accepted = True
    except ConfigError:
        accepted = False
    assert config.model_dump_json() == before
    shares = [
        (m.num_attention_heads, p.tensor),
        (m.kv_heads, p.tensor),
        (m.num_attention_heads, m.kv_heads),
        (m.ffn_size, 1 if m.num_experts else p.tensor),
        (m.num_experts or 1, p.expert),
        (p.tensor * p.context * data, p.expert),
        (m.vocab_size, p.tensor),
        (t.global_batch_size, t.micro_batch_size * data),
        (t.sequence_length, 2 * p.context if p.context > 1 else 1),
        (t.sequence_length // p.context, p.tensor if p.sequence else 1),
        (m.hidden_size, m.num_attention_heads),
    ]
    whole = all(size % by == 0 for size, by in shares) and m.head_size % 2 == 0
    whole = whole and m.num_hidden_layers >= p.pipeline * p.virtual_pipeline
    if accepted:
        assert whole
        assert data_parallel_size(config, world_size) == data
        assert micro_batches(config, world_size) * t.micro_batch_size * data == t.global_batch_size
    else:  # and it refuses nothing that would work
        interleaves = p.virtual_pipeline == 1 or (
            p.pipeline > 1 and (t.global_batch_size // (t.micro_batch_size * data)) % p.pipeline == 0
        )
        with_experts = m.num_experts is None or (
            (p.tensor == 1 or p.sequence) and (p.zero_stage in (1, 2) or p.tensor == p.expert == 1)
        )
        assert not (whole and interleaves and with_experts and (p.offload == "none" or p.zero_stage > 0))


@settings(deadline=None)
@given(tree=LAYOUTS, world_size=st.integers(1, 64))
def test_a_refusal_names_keys_and_numbers(tree: dict, world_size: int) -> None:
    config = parse_config(tree)
    try:
        validate(config, world_size)
    except ConfigError as error:
        told = str(error)
    else:
        assume(False)
    for line in told.splitlines():
        assert re.search(r"(?:model|parallel|training)\.[a-z_]+", line), line
        assert re.search(r"\d", line), line
        assert len(line) < 400, line
