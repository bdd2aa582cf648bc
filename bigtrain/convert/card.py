"""The model card: what the model was trained on and how, and what was proven of its conversion."""

from pathlib import Path
from typing import Any

from bigtrain import __version__
from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import Config
from bigtrain.config.reading import dump
from bigtrain.convert.export import Written
from bigtrain.convert.family import Family
from bigtrain.convert.parity import Parity
from bigtrain.convert.source import digest_of, run_config

_HEAD = """---
library_name: transformers
pipeline_tag: {use}
tags:
- bigtrain
---
"""
_USES = {
    "gpt": "text-generation",
    "bert": "fill-mask",
    "t5": "text2text-generation",
    "classification": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
    "question_answering": "question-answering",
}
"""What Hugging Face calls what a model is for, by its architecture or its task."""


def write_card(
    folder: Path, source: Checkpoint, family: Family, run: Path | None, written: Written, parity: Parity | None
) -> None:
    """Write `README.md` beside the weights.

    Raises:
        OSError: It cannot be written.
    """
    config = run_config(run)
    parts = [
        _HEAD.format(use=_USES[_use(source, config)]),
        f"# {run.resolve().name if run is not None else folder.name.removesuffix('.writing')}\n",
        f"A {family.name} model of {written.parameters:,} parameters, trained with BigTrain {__version__}.\n",
        _training(source, config),
        _verification(source, parity),
    ]
    if config is not None:
        parts.append(_configuration(config))
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def _use(source: Checkpoint, config: Config | None) -> str:
    task = None if config is None else config.finetune.task
    return task if task in _USES else str(source.model.get("architecture", "gpt"))


def _training(source: Checkpoint, config: Config | None) -> str:
    state = source.state
    rows = {"Steps": f"{state.step:,}", "Tokens trained on": f"{state.tokens:,}"}
    if source.origin:
        rows["Began with"] = f"{source.origin.get('folder')}, weights of SHA-256 `{source.origin.get('sha256')}`"
    if config is not None:
        rows["Data"] = "; ".join(_data(config))
        rows["Held-out data"] = _held_out(config)
        t = config.training
        rows["Batch"] = f"{t.global_batch_size} sequences of {t.sequence_length} tokens"
        rows["Precision"] = t.precision
    if "train" in source.data:
        rows["Fingerprint of the data"] = f"`{source.data['train']}`"
    return "## Training\n\n" + _table(rows)


def _data(config: Config) -> list[str]:
    if config.finetune.task is not None:
        return [f"{config.finetune.train}, for {config.finetune.task.replace('_', ' ')}"]
    if config.data.train is not None:
        return [config.data.train]
    return [f"{name}: {part.path}" for name, part in config.data.sources.items()]


def _held_out(config: Config) -> str:
    share = config.finetune.validation_fraction
    return config.data.validation or config.finetune.validation or (f"{share:.0%} of these" if share else "none")


def _verification(source: Checkpoint, parity: Parity | None) -> str:
    head = "## Conversion\n\n"
    if parity is None:
        digest = digest_of(source)
        return head + f"**Not verified** (`--no-verify`). The checkpoint's SHA-256 is `{digest}`.\n"
    return head + (
        "The logits of BigTrain's model and of `transformers`' model, made of this folder, were compared:\n"
        f"{parity.describe()}. `parity.json` has the figures; the checkpoint's SHA-256 is `{parity.source_sha256}`.\n"
    )


def _configuration(config: Config) -> str:
    sections: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    for name in ("logging", "launch"):  # where it ran says nothing about the model
        sections.pop(name, None)
    return f"## Configuration\n\n```yaml\n{dump(sections)}```\n"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"
