"""What can work: rules between options, checked without torch and before any process starts.

Validation changes nothing: it returns None or raises one :class:`ConfigError` that lists every rule
that is broken, with the numbers and the remedy.
"""

from collections.abc import Iterator
from math import gcd, lcm

from bigtrain.config.reference import any_of
from bigtrain.config.schema import Config
from bigtrain.config.validate_architecture import architecture_problems
from bigtrain.config.validate_data import data_problems
from bigtrain.config.validate_finetune import finetune_problems
from bigtrain.config.validate_model import model_problems
from bigtrain.config.validate_t5 import t5_problems
from bigtrain.errors import ConfigError

_SHOWN = 64  # no larger group is suggested: a remedy is a short list


def data_parallel_size(config: Config, world_size: int) -> int:
    """Copies of the model among `world_size` processes."""
    return world_size // config.parallel.model_parallel_size


def exchanges_heads(config: Config) -> bool:
    """Whether context parallel exchanges heads for attention, or else keys and values around a ring.

    The former where the query heads and the key/value heads of a process both divide by `parallel.context`.
    """
    m, p = config.model, config.parallel
    return all((heads // p.tensor) % p.context == 0 for heads in (m.num_attention_heads, m.kv_heads))


def micro_batches(config: Config, world_size: int) -> int:
    """Forward passes of one process per optimizer step."""
    return config.training.global_batch_size // (
        config.training.micro_batch_size * data_parallel_size(config, world_size)
    )


def validate(config: Config, world_size: int) -> None:
    """Check everything that the configuration and the number of processes alone decide.

    Raises:
        ConfigError: Naming every broken rule, one a line.
    """
    heads = list(_heads(config))
    problems = [
        *(data_problems(config) if config.finetune.task is None else ()),
        *architecture_problems(config),
        *finetune_problems(config),
        *heads,
        *(model_problems(config.model) if not heads else ()),
        *(_tensor(config) if not heads else ()),  # what would fit is known only for sound heads
        *_sequence(config),
        *_context(config),
        *_pipeline(config),
        *t5_problems(config),
        *_experts(config),
        *_world(config, world_size),
        *_combinations(config),
        *_schedule(config),
        *_validation(config),
        *_checkpoint(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _heads(config: Config) -> Iterator[str]:
    m = config.model
    if m.head_dim is None and m.hidden_size % m.num_attention_heads:
        yield (
            f"model.hidden_size ({m.hidden_size}) is not divisible by model.num_attention_heads "
            f"({m.num_attention_heads}): heads are of one size; "
            f"{_fitting('model.num_attention_heads', m.hidden_size)}, or set model.head_dim"
        )
    elif m.position_embedding == "rope" and m.head_size % 2:
        yield f"the head size ({m.head_size}) is odd: rotary positions turn pairs; give an even model.head_dim"
    if m.num_attention_heads % m.kv_heads:
        yield (
            f"model.num_attention_heads ({m.num_attention_heads}) is not divisible by model.num_key_value_heads "
            f"({m.kv_heads}): each key/value head serves the same number of query heads; "
            f"{_fitting('model.num_key_value_heads', m.num_attention_heads)}"
        )


def _tensor(config: Config) -> Iterator[str]:
    m, tensor = config.model, config.parallel.tensor
    shared = {"model.num_attention_heads": m.num_attention_heads}
    if m.num_experts is None:  # an expert is never cut
        shared["model.intermediate_size"] = m.ffn_size
    if m.kv_heads != m.num_attention_heads:
        shared["model.num_key_value_heads"] = m.kv_heads
    if odd := [f"{key} ({size})" for key, size in shared.items() if size % tensor]:
        yield (
            f"{', '.join(odd)} {'is' if len(odd) == 1 else 'are'} not divisible by parallel.tensor ({tensor}): each "
            f"process of the tensor group holds an equal share; {_fitting('parallel.tensor', *shared.values())}"
        )
    elif m.vocab_size % tensor:
        yield (
            f"model.vocab_size ({m.vocab_size}) is not divisible by parallel.tensor ({tensor}): each process of the "
            f"tensor group holds an equal share of rows; model.vocab_size={_next(m.vocab_size, 128 * tensor)} would fit"
        )


def _sequence(config: Config) -> Iterator[str]:
    m, p, length = config.model, config.parallel, config.training.sequence_length
    if m.position_embedding != "relative" and length > m.longest_sequence:
        less = f", less model.position_offset ({m.position_offset})" if m.position_offset else ""
        yield (
            f"training.sequence_length ({length}) is above model.max_position_embeddings "
            f"({m.max_position_embeddings}){less}; lower one or raise the other"
        )
    tensor = p.tensor if p.sequence else 1
    if p.context == 1 and length % tensor:
        yield (
            f"training.sequence_length ({length}) is not divisible by parallel.tensor ({p.tensor}): with "
            f"parallel.sequence each process holds as many tokens; "
            f"training.sequence_length={_next(length, p.tensor)} would fit"
        )
    elif p.context > 1 and length % (parts := p.context * lcm(2, tensor)):
        also = f", which parallel.sequence splits over parallel.tensor ({tensor})" if tensor > 1 else ""
        yield (
            f"training.sequence_length ({length}) is not divisible by {parts}: with parallel.context ({p.context}) "
            f"each process holds two equally long pieces of it{also}; "
            f"training.sequence_length={_next(length, parts)} would fit"
        )


def _context(config: Config) -> Iterator[str]:
    """What keys and values that go around a ring do not do."""
    m, p, packing = config.model, config.parallel, config.data.packing
    heads, kv_heads = m.num_attention_heads // p.tensor, m.kv_heads // p.tensor
    if not kv_heads or exchanges_heads(config):
        return
    refused = []
    if m.attention_dropout:
        given = f"model.attention_dropout ({m.attention_dropout})"
        refused.append((given, "whose blocks drop nothing", "model.attention_dropout=0.0"))
    if packing in ("documents", "best_fit"):
        refused.append((f"data.packing={packing}", "which knows no documents", "data.packing=contiguous"))
    if any(m.windows):
        given = f"model.sliding_window ({m.sliding_window})"
        refused.append((given, "which knows no windows", "model.sliding_window=null"))
    if m.attn_logit_softcapping is not None:
        given = f"model.attn_logit_softcapping ({m.attn_logit_softcapping})"
        refused.append((given, "whose kernels bend no scores", "model.attn_logit_softcapping=null"))
    for given, why, remedy in refused:
        yield (
            f"{given} cannot be had with parallel.context ({p.context}), which does not divide the {heads} query and "
            f"{kv_heads} key/value heads of a process: keys and values go around a ring, {why}; set {remedy}, or "
            f"{_fitting('parallel.context', heads, kv_heads)}"
        )


def _pipeline(config: Config) -> Iterator[str]:
    m, p = config.model, config.parallel
    layers = m.num_hidden_layers + m.decoder_layers
    named = "model.num_hidden_layers" + (" + model.num_decoder_layers" if m.decoder_layers else "")
    if p.virtual_pipeline > 1 and p.pipeline == 1:
        yield (
            f"parallel.virtual_pipeline ({p.virtual_pipeline}) cuts the stages of a pipeline into chunks, "
            f"but parallel.pipeline is 1; set parallel.virtual_pipeline=1 or raise parallel.pipeline"
        )
    elif layers < (chunks := p.pipeline * p.virtual_pipeline):
        virtual = f" x parallel.virtual_pipeline ({p.virtual_pipeline})" if p.virtual_pipeline > 1 else ""
        yield (
            f"{named} ({layers}) is below parallel.pipeline ({p.pipeline}){virtual}: each "
            f"{'chunk' if virtual else 'stage'} holds at least one layer; lower "
            f"{'one of the two' if virtual else 'parallel.pipeline'} or add layers"
        )
    elif p.layers_per_stage is not None:
        each, total = p.layers_per_stage, sum(p.layers_per_stage)
        if len(each) != chunks:
            yield (
                f"parallel.layers_per_stage has {len(each)} numbers for parallel.pipeline ({p.pipeline}) x "
                f"parallel.virtual_pipeline ({p.virtual_pipeline}): give {chunks}, one a chunk in the order of the "
                "model, or leave it out to have the layers balanced"
            )
        elif total != layers:
            yield (
                f"parallel.layers_per_stage ({' + '.join(map(str, each))}) makes {total} layers, but "
                f"{named} is {layers}"
            )


def _experts(config: Config) -> Iterator[str]:
    m, p = config.model, config.parallel
    if m.num_experts is None:
        given = {"parallel.expert": p.expert if p.expert > 1 else None}
        given["model.moe_intermediate_size"] = m.moe_intermediate_size
        for key, value in given.items():
            if value is not None:
                yield f"{key} ({value}) is for a mixture of experts; set model.num_experts or leave {key} out"
        return
    if m.num_experts_per_tok > m.num_experts:
        yield f"model.num_experts_per_tok ({m.num_experts_per_tok}) is above model.num_experts ({m.num_experts})"
    elif m.num_experts_per_tok == 1 and m.norm_topk_prob:
        yield (
            "model.num_experts_per_tok is 1 and model.norm_topk_prob makes the weight of the one expert 1 whatever the "
            "router says, so that it would learn nothing; set model.norm_topk_prob=false"
        )
    if m.linear_bias:
        yield "model.linear_bias is true, but Megatron-core's experts have no biases; set model.linear_bias=false"
    if p.tensor > 1 and not p.sequence:
        yield (
            f"parallel.tensor ({p.tensor}) with experts needs parallel.sequence=true: each process of the tensor group "
            "routes its own part of the sequence"
        )
    if p.experts_lie_apart and p.zero_stage in (0, 3):
        split = f"parallel.expert ({p.expert})" if p.expert > 1 else f"parallel.tensor ({p.tensor})"
        why = (
            "DeepSpeed's stage 3 cuts all weights over the same processes"
            if p.zero_stage == 3
            else "without ZeRO each process counts the gradient norm from its own copy of the model"
        )
        yield (
            f"parallel.zero_stage={p.zero_stage} cannot be had with experts and {split}: experts lie on other "
            f"processes than the rest of the layer, and {why}; set parallel.zero_stage=1 or 2"
        )


def _world(config: Config, world_size: int) -> Iterator[str]:
    p = config.parallel
    if world_size % p.model_parallel_size:
        near = max(1, world_size // p.model_parallel_size) * p.model_parallel_size
        yield (
            f"tensor({p.tensor}) x context({p.context}) x pipeline({p.pipeline}) x data(?) does not make world size "
            f"{world_size}: start {near} or {near + p.model_parallel_size} processes, or change parallel.tensor, "
            f"parallel.context or parallel.pipeline"
        )
        return
    holders = world_size // p.pipeline
    if config.model.num_experts and (config.model.num_experts % p.expert or holders % p.expert):
        yield (
            f"parallel.expert ({p.expert}) does not divide both model.num_experts ({config.model.num_experts}) and the "
            f"{holders} processes of a stage (tensor x context x data): each holds as many experts; "
            f"{_fitting('parallel.expert', config.model.num_experts, holders)}"
        )
    yield from _batch(config, world_size)


def _batch(config: Config, world_size: int) -> Iterator[str]:
    p, t = config.parallel, config.training
    data = data_parallel_size(config, world_size)
    at_once = t.micro_batch_size * data
    if t.global_batch_size % at_once:
        fits = _divisors(t.global_batch_size // data) if t.global_batch_size % data == 0 else []
        near = sorted(sorted(fits, key=lambda n: abs(n - t.micro_batch_size))[:2])
        remedy = (
            f"training.micro_batch_size={any_of([str(n) for n in near])}"
            if near
            else f"training.global_batch_size={_next(t.global_batch_size, at_once)}"
        )
        yield (
            f"training.micro_batch_size ({t.micro_batch_size}) x data parallel ({data}) does not divide "
            f"training.global_batch_size ({t.global_batch_size}); try {remedy}"
        )
    elif p.virtual_pipeline > 1 and p.pipeline > 1 and (count := micro_batches(config, world_size)) % p.pipeline:
        yield (
            f"the interleaved schedule moves micro-batches in groups of parallel.pipeline ({p.pipeline}), which does "
            f"not divide their number ({count}); set parallel.virtual_pipeline=1 or try "
            f"training.global_batch_size={_next(t.global_batch_size, at_once * p.pipeline)}"
        )


def _combinations(config: Config) -> Iterator[str]:
    """What cannot be had together, and why; of ZeRO stage x pipeline x precision x offload all else can."""
    m, p = config.model, config.parallel
    if m.qkv_bias and m.linear_bias:
        yield "model.qkv_bias and model.linear_bias are both true; linear_bias includes qkv_bias: leave the latter out"
    if p.offload == "optimizer" and p.zero_stage == 0:
        yield (
            "parallel.offload=optimizer needs parallel.zero_stage 1, 2 or 3: DeepSpeed's offload moves "
            "the partition of the optimizer's state, which stage 0 does not make"
        )


def _schedule(config: Config) -> Iterator[str]:
    s, steps = config.schedule, config.training.steps
    if s.warmup_steps > steps:
        yield f"schedule.warmup_steps ({s.warmup_steps}) is above training.steps ({steps}); the warm-up would never end"
    elif s.name == "wsd" and not 0 < s.decay_steps <= steps - s.warmup_steps:
        yield (
            f"schedule.decay_steps ({s.decay_steps}) must be between 1 and training.steps - schedule.warmup_steps "
            f"({steps - s.warmup_steps}) for schedule.name=wsd"
        )
    if s.name != "wsd" and s.decay_steps:
        what = "never falls" if s.name == "constant" else "falls until the last step"
        yield (
            f"schedule.decay_steps ({s.decay_steps}) belongs to schedule.name=wsd, but {s.name} {what}; "
            f"leave it out or set schedule.name=wsd"
        )


def _validation(config: Config) -> Iterator[str]:
    t = config.training
    asked = [key for key in ("validation_interval", "validation_samples") if getattr(t, key)]
    if config.data.validation is None and config.finetune.task is None and asked:
        yield (
            f"training.{asked[0]} ({getattr(t, asked[0])}) asks for validation, but data.validation names no dataset; "
            f"give one or set training.{asked[0]}=0"
        )


def _checkpoint(config: Config) -> Iterator[str]:
    c = config.checkpoint
    if c.keep_every and (c.interval == 0 or c.keep_every % c.interval):
        remedy = f"try checkpoint.keep_every={_next(c.keep_every, c.interval)}" if c.interval else "give an interval"
        yield (
            f"checkpoint.keep_every ({c.keep_every}) is not a multiple of checkpoint.interval ({c.interval}): "
            f"what is to be kept must be saved; {remedy}"
        )


def _fitting(key: str, *sizes: int) -> str:
    """Which values of `key` divide all of `sizes`."""
    return f"{key} could be {any_of([str(n) for n in _divisors(gcd(*sizes))])}"


def _divisors(size: int) -> list[int]:
    return [n for n in range(1, min(size, _SHOWN) + 1) if size % n == 0]


def _next(size: int, multiple: int) -> int:
    """The least multiple that is not below `size`."""
    return -(-size // multiple) * multiple
