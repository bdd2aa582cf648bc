"""What can work: rules between options, checked without torch and before any process starts.

Validation changes nothing: it returns None or raises one :class:`ConfigError` that lists every rule
that is broken, with the numbers and the remedy.
"""

from collections.abc import Iterator

from bigtrain.config.schema import Config
from bigtrain.errors import ConfigError


def data_parallel_size(config: Config, world_size: int) -> int:
    """Copies of the model among `world_size` processes."""
    return world_size // config.parallel.model_parallel_size


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
    problems = [*_model(config), *_shapes(config), *_world(config, world_size), *_zero(config), *_schedule(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _divides(name: str, value: int, by_name: str, by: int, why: str) -> Iterator[str]:
    if value % by:
        yield f"{name} ({value}) is not divisible by {by_name} ({by}): {why}; {_fitting(value, by_name)}"


def _fitting(value: int, by_name: str) -> str:
    fits = [str(n) for n in range(1, min(value, 64) + 1) if value % n == 0]
    return f"{by_name} could be {' or '.join(fits[-1:]) if len(fits) == 1 else ', '.join(fits[:-1]) + ' or ' + fits[-1]}"


def _model(config: Config) -> Iterator[str]:
    m = config.model
    if m.head_dim is None and m.hidden_size % m.num_attention_heads:
        yield (
            f"model.hidden_size ({m.hidden_size}) is not divisible by model.num_attention_heads "
            f"({m.num_attention_heads}); set model.head_dim or change one of them"
        )
    if m.num_attention_heads % m.kv_heads:
        yield (
            f"model.num_attention_heads ({m.num_attention_heads}) is not divisible by "
            f"model.num_key_value_heads ({m.kv_heads}): each key/value head serves the same number of query heads"
        )
    if m.position_embedding == "rope" and m.head_size % 2:
        yield f"the head size ({m.head_size}) is odd: rotary positions turn pairs; use an even model.head_dim"
    if m.qkv_bias and m.linear_bias:
        yield "model.qkv_bias and model.linear_bias are both true; linear_bias already includes the former"
    if config.training.sequence_length > m.max_position_embeddings:
        yield (
            f"training.sequence_length ({config.training.sequence_length}) is above "
            f"model.max_position_embeddings ({m.max_position_embeddings}); lower one or raise the other"
        )


def _shapes(config: Config) -> Iterator[str]:
    m, p = config.model, config.parallel
    heads = "every process of the tensor group holds whole heads"
    yield from _divides("model.num_attention_heads", m.num_attention_heads, "parallel.tensor", p.tensor, heads)
    yield from _divides("model.num_key_value_heads", m.kv_heads, "parallel.tensor", p.tensor, heads)
    yield from _divides("model.intermediate_size", m.ffn_size, "parallel.tensor", p.tensor, "columns are shared evenly")
    if m.vocab_size % p.tensor:
        above = -(-m.vocab_size // (128 * p.tensor)) * 128 * p.tensor
        yield (
            f"model.vocab_size ({m.vocab_size}) is not divisible by parallel.tensor ({p.tensor}): "
            f"rows are shared evenly; {above} would fit"
        )
    if p.virtual_pipeline > 1 and p.pipeline == 1:
        yield f"parallel.virtual_pipeline ({p.virtual_pipeline}) needs parallel.pipeline above 1"
    elif m.num_hidden_layers % (p.pipeline * p.virtual_pipeline):
        yield (
            f"model.num_hidden_layers ({m.num_hidden_layers}) is not divisible by parallel.pipeline ({p.pipeline}) "
            f"x parallel.virtual_pipeline ({p.virtual_pipeline}): each chunk holds the same number of layers"
        )
    if p.sequence:
        yield from _divides(
            "training.sequence_length",
            config.training.sequence_length,
            "parallel.tensor",
            p.tensor,
            "sequence parallel gives each process the same number of tokens",
        )


def _world(config: Config, world_size: int) -> Iterator[str]:
    p, t = config.parallel, config.training
    if world_size % p.model_parallel_size:
        near = max(p.model_parallel_size, world_size // p.model_parallel_size * p.model_parallel_size)
        yield (
            f"tensor({p.tensor}) x pipeline({p.pipeline}) x data(?) does not make world size {world_size}: "
            f"start {near} or {near + p.model_parallel_size} processes, or change parallel.tensor or parallel.pipeline"
        )
        return
    data = data_parallel_size(config, world_size)
    at_once = t.micro_batch_size * data
    if t.global_batch_size % at_once:
        fits = [n for n in range(1, t.global_batch_size // data + 1) if t.global_batch_size % (n * data) == 0]
        near = sorted(fits, key=lambda n: abs(n - t.micro_batch_size))[:2]
        remedy = (
            f"try training.micro_batch_size={' or '.join(map(str, sorted(near)))}"
            if fits
            else f"try training.global_batch_size={-(-t.global_batch_size // at_once) * at_once}"
        )
        yield (
            f"training.micro_batch_size ({t.micro_batch_size}) x data parallel ({data}) does not divide "
            f"training.global_batch_size ({t.global_batch_size}); {remedy}"
        )
        return
    if p.pipeline > 1 and p.virtual_pipeline > 1 and (count := micro_batches(config, world_size)) % p.pipeline:
        yield (
            f"the interleaved schedule needs a number of micro-batches ({count}) that parallel.pipeline "
            f"({p.pipeline}) divides; change training.global_batch_size or training.micro_batch_size, "
            f"or set parallel.virtual_pipeline=1"
        )


def _zero(config: Config) -> Iterator[str]:
    p = config.parallel
    if p.offload == "optimizer" and p.zero_stage == 0:
        yield (
            "parallel.offload=optimizer needs parallel.zero_stage 1, 2 or 3: "
            "DeepSpeed's offload moves the partition of the optimizer that stage 0 does not make"
        )


def _schedule(config: Config) -> Iterator[str]:
    s, t = config.schedule, config.training
    if s.warmup_steps > t.steps:
        yield f"schedule.warmup_steps ({s.warmup_steps}) is above training.steps ({t.steps})"
    if s.name == "wsd" and not 0 < s.decay_steps <= t.steps - s.warmup_steps:
        yield (
            f"schedule.decay_steps ({s.decay_steps}) must be between 1 and training.steps - schedule.warmup_steps "
            f"({t.steps - s.warmup_steps}) for schedule.name=wsd"
        )
    if s.name != "wsd" and s.decay_steps:
        yield f"schedule.decay_steps ({s.decay_steps}) belongs to schedule.name=wsd; {s.name} decays until the last step"
    b1, b2 = config.optimizer.betas
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        yield f"optimizer.betas ({b1}, {b2}) must each be at least 0 and below 1"
