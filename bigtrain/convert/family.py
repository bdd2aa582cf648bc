"""What a family of models declares: its names, and its configuration in both directions. Nothing here needs torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bigtrain.config import ModelConfig
from bigtrain.config.tasks import Task
from bigtrain.convert.mapping import WeightMap
from bigtrain.errors import ConversionError

OF_TRAINING = frozenset(
    {"hidden_dropout", "attention_dropout", "initializer_range", "router_aux_loss_coef", "router_z_loss_coef"}
)
"""Options of the model that say how it is trained and not what it computes: a family need not know them."""


@dataclass(frozen=True)
class Family:
    """A family of models at Hugging Face, in both directions."""

    name: str
    """As people call it."""
    model_type: str
    """As `config.json` calls it."""
    architecture: str
    """The class of `transformers` with the language model's head."""
    weights: WeightMap
    """Our weights' names to the family's."""
    shape: Mapping[str, Any]
    """Keys of the `model` section that every model of the family has, with their values."""
    keys: Mapping[str, str | tuple[str, ...]]
    """Keys of the `model` section to those of `config.json` that hold the same value; of several all hold it."""
    write: Callable[[ModelConfig], dict[str, Any]] = lambda model: {}
    """Keys of `config.json` that are not ours under another name."""
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    """The way back: keys of the `model` section that these say."""
    ignored: frozenset[str] = frozenset()
    """Keys of `config.json` that do not change what the language model computes."""
    buffers: tuple[str, ...] = ()
    """Patterns of tensors in files that are no weights: they are computed anew."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors in some files that must be equal to another, of which they are another name."""
    endings: Mapping[str, str] = field(default_factory=dict)
    """How names end in older files, and how they do now."""
    prefix: str = ""
    """What stands before the body's names, and in some files does not."""
    heads: tuple[str, ...] = ()
    """How the names of each head's tensors begin, where a folder may be without all of one: it can be fine-tuned."""
    pooler: str = ""
    """The tensor that tells whether a folder has the layer of `model.add_pooling_layer`."""
    other_heads: frozenset[Task] = frozenset()
    """Tasks for which the family's head in `transformers` computes something else than ours."""

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """The same model in the words of its `config.json`, without tokens and type of the weights."""
        values: dict[str, Any] = {"model_type": self.model_type, "architectures": [self.architecture]}
        filled = {
            "num_key_value_heads": model.kv_heads,
            "moe_intermediate_size": model.ffn_size,
            "num_decoder_layers": model.decoder_layers or None,
        }
        if "moe_intermediate_size" not in self.keys:  # where it is another key, the one of a block without experts
            filled["intermediate_size"] = model.ffn_size
        for ours, theirs in self.keys.items():
            value = filled.get(ours, getattr(model, ours))
            if value is not None:
                values |= dict.fromkeys((theirs,) if isinstance(theirs, str) else theirs, value)
        return values | self.write(model)

    def model(self, config: Mapping[str, Any]) -> ModelConfig:
        """Our shape of the model that a complete `config.json` describes.

        Raises:
            ConversionError: A value is of another kind than ours can be.
        """
        values = {**self.shape}
        for ours, theirs in self.keys.items():
            value = config.get(theirs if isinstance(theirs, str) else theirs[0])
            if value is not None:
                values[ours] = value
        try:
            return ModelConfig.model_validate({**values, **self.read(config)})
        except ValidationError as error:
            first = error.errors()[0]
            ours = str(first["loc"][0])
            theirs = self.keys.get(ours, ours)
            key = theirs if isinstance(theirs, str) else theirs[0]
            raise ConversionError(
                f"config.json: {key} is {first['input']!r}, which model.{ours} cannot be: {first['msg']}"
            ) from None

    def misfits(self, model: ModelConfig) -> list[str]:
        """What keeps a model from being one of this family: the keys that would not come back from `config.json`."""
        back, own = (_meaning(m) for m in (self.model(self.config(model)), model))
        return [
            f"model.{key} is {value!r} and must be {back[key]!r}"
            for key, value in own.items()
            if key in back and back[key] != value
        ]


def _meaning(model: ModelConfig) -> dict[str, Any]:
    """What decides what the model computes, the defaults applied."""
    unused = {*OF_TRAINING, "moe_intermediate_size"}
    if model.position_embedding != "rope":
        unused.add("rope_theta")
    if model.position_embedding == "relative":
        unused.add("max_position_embeddings")
    if model.num_experts is None:
        unused |= {"num_experts_per_tok", "norm_topk_prob"}
    values = model.model_dump(mode="json", exclude={*unused, "layer_types"})
    return values | {
        "num_decoder_layers": model.decoder_layers,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "intermediate_size": model.ffn_size,
        "sliding_window": model.windows if any(model.windows) else None,
        "query_pre_attn_scalar": model.query_pre_attn_scalar or model.head_size,
    }


# ------------------------------------------------------------------ what several families say in the same words


def write_rope_scaling(model: ModelConfig) -> dict[str, Any]:
    """The key `rope_scaling`."""
    scaling = model.rope_scaling
    if scaling is None:
        return {"rope_scaling": None}
    return {"rope_scaling": scaling.model_dump(mode="json", exclude_defaults=True)}


def read_rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The way back; in older files `rope_type` is `type`."""
    given = config.get("rope_scaling")
    if given is None or given.get("rope_type") == "default":
        return {}
    found = {key: value for key, value in given.items() if key != "type" and value is not None}
    return {"rope_scaling": {"rope_type": given.get("type"), **found}}


def write_windows(model: ModelConfig) -> dict[str, Any]:
    """The keys `sliding_window` and `layer_types`."""
    kinds = ["full_attention" if window is None else "sliding_attention" for window in model.windows]
    return {"sliding_window": model.sliding_window, "layer_types": kinds}


def read_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """The way back."""
    if config.get("sliding_window") is None:
        return {}
    return {key: config[key] for key in ("sliding_window", "layer_types")}
