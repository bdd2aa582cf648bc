"""Which checkpoint a run goes on from or begins with, and whether it may. Nothing here needs torch."""

from typing import Any

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.checkpoint.places import checkpoint_folder
from bigtrain.config import Config
from bigtrain.errors import CheckpointError, ConfigError, ConversionError
from bigtrain.training.beginning import begins_in

_CHANGEABLE = {"hidden_dropout", "attention_dropout", "initializer_range"}
"""Options of the model that may be changed midway: the weights mean the same."""
_OF_THE_ROUTERS_LOSS = {"router_aux_loss_coef", "router_z_loss_coef"}
_DATA_KEYS = {
    "train": "data.train (its contents)",
    "sources": "data.sources (their contents)",
    "stages": "the shares of data.sources and data.stages until then",
    "shuffle": "data.shuffle",
    "shuffle_window": "data.shuffle_window",
    "packing": "data.packing",
    "objective": "data.objective",
    "task": "finetune.task",
    "examples": "finetune.train (its contents)",
    "labels": "finetune.labels, or those of finetune.train",
    "sentence_objective": "data.sentence_objective",
}


def checkpoint_to_resume(config: Config, identity: dict[str, Any]) -> catalog.Checkpoint | None:
    """The newest complete checkpoint, if there is one.

    Args:
        config: The run's.
        identity: What decides which samples a position means, see :class:`bigtrain.training.inputs.Inputs`.

    Raises:
        CheckpointError: It is damaged, or of another model or other data, or there should be none.
    """
    folder = checkpoint_folder(config)
    found = catalog.newest(folder)
    if found is None:
        return None
    if not config.checkpoint.resume:
        raise CheckpointError(
            f"{folder} holds checkpoints of an earlier run and checkpoint.resume is false; "
            "set it to true, or choose another training.output_dir (and checkpoint.dir, where it is set)"
        )
    _same(found, "model", *_models(found, config, _CHANGEABLE))
    nothing = {"lora": None, "freeze": "none"}
    _same(found, "finetune", nothing | found.trained, nothing | config.finetune.trained)
    _same(found, "data", _past(found.data, found.state.position), _past(identity, found.state.position))
    if found.state.step > config.training.steps:
        raise CheckpointError(
            f"{found.path} is at step {found.state.step}, beyond training.steps ({config.training.steps})"
        )
    return found


def checkpoint_to_begin_with(config: Config) -> catalog.Checkpoint | None:
    """What `checkpoint.initialize_from` names, for a run that has no checkpoint to resume.

    Raises:
        ConfigError: The URL is of a kind that nothing here can open.
        CheckpointError: It holds no complete checkpoint, or one of another model.
        ConversionError: It is a Hugging Face folder that cannot be converted.
    """
    if config.checkpoint.initialize_from is None:
        return None
    try:
        found = find_checkpoint(begins_in(config))
        check_whole(found)
        was, now = _models(found, config, _CHANGEABLE | _OF_THE_ROUTERS_LOSS)
    except (ConfigError, CheckpointError, ConversionError) as error:
        raise type(error)(f"checkpoint.initialize_from: {error}") from None
    if not now["add_pooling_layer"]:  # what the checkpoint has of it stays behind
        was["add_pooling_layer"] = False
    if changed := [
        f"model.{key} is {now[key]!r} and there {was.get(key)!r}" for key in now if was.get(key) != now[key]
    ]:
        raise CheckpointError(
            f"checkpoint.initialize_from: {found.path} holds the weights of another model: {'; '.join(changed)}"
        )
    return found


def check_whole(initial: catalog.Checkpoint) -> None:
    """Refuse to begin with a model's weights and leave out its adapters.

    Raises:
        CheckpointError: There are some.
    """
    if "lora" in initial.trained:
        raise CheckpointError(
            f"{initial.path} has adapters (finetune.lora) beside its weights; merge them first, with "
            "`bigtrain convert to-hf`, and begin with the folder that it makes"
        )


def _models(
    checkpoint: catalog.Checkpoint, config: Config, changeable: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model` section of a checkpoint and that of the run."""
    defaults = {name: field.default for name, field in type(config.model).model_fields.items()}  # of newer options
    return {**defaults, **checkpoint.model}, config.model.model_dump(mode="json", exclude=changeable)


def _past(identity: dict[str, Any], position: int) -> dict[str, Any]:
    """What of it decided the samples before `position`: stages to come may change, and sources not yet read."""
    if "stages" not in identity:
        return identity
    stages = [stage for stage in identity["stages"] if stage["position"] < position]
    read = {name for stage in stages for name in stage["shares"]}
    sources = {name: fingerprint for name, fingerprint in identity["sources"].items() if name in read}
    return {**identity, "stages": stages, "sources": sources}


def _same(checkpoint: catalog.Checkpoint, section: str, stored: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{_DATA_KEYS.get(key, f'training.{key}') if section == 'data' else f'{section}.{key}'} "
        f"was {stored.get(key)!r} and is {now.get(key)!r}"
        for key in {**now, **(stored if section == "data" else {})}
        if stored.get(key) != now.get(key)
    ]
    if changed:
        raise CheckpointError(
            f"{checkpoint.path} cannot be resumed with this configuration: {'; '.join(changed)}. "
            "Set it back, or choose another training.output_dir (and checkpoint.dir, where it is set) to start anew"
        )
