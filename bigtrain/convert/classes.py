"""Which class of `transformers` a model becomes, and what that calls the weights of a task's head."""

from collections.abc import Iterable
from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from bigtrain.config.tasks import FinetuneConfig, Task
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import WHOLE, WeightMap
from bigtrain.errors import ConversionError

LANGUAGE_MODELS = {"gpt": AutoModelForCausalLM, "bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
"""By `model.architecture`."""
_OF_TASKS: dict[Task, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}
_HEADS = {
    "head": ("score", "classifier", "classifier.out_proj", "qa_outputs"),
    "pooler.dense": ("bert.pooler.dense", "classifier.dense"),
}
"""Modules of ours, and what one class or another calls them."""


def class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that a configuration of ours names."""
    (name,) = config.architectures
    return getattr(transformers, name)


def task_keys(family: Family, task: FinetuneConfig) -> dict[str, Any]:
    """Keys of the `config.json` of a family's model with a task's head.

    Raises:
        ConversionError: `transformers` has no such model.
    """
    assert task.task is not None, "a head is of a task"
    config = transformers.AutoConfig.for_model(family.model_type)
    of_family = _OF_TASKS[task.task]._model_mapping.get(type(config), None)
    if of_family is None:
        raise ConversionError(f"transformers has no model of {family.name} for {task.task.replace('_', ' ')}")
    if task.classifier_pooling != "cls":
        raise ConversionError(
            f"finetune.classifier_pooling is {task.classifier_pooling}, and the {of_family.__name__} of transformers "
            "reads the first token: it cannot say the same"
        )
    if task.task in family.other_heads:
        raise ConversionError(
            f"the {of_family.__name__} of transformers has another head than BigTrain's: what was fine-tuned for "
            f"{task.task.replace('_', ' ')} cannot become one"
        )
    keys: dict[str, Any] = {"architectures": [of_family.__name__]}
    if task.task in ("classification", "tagging"):
        labels = list(task.labels or ())
        keys |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if task.task == "classification":
        keys["problem_type"] = "single_label_classification"
    if task.task == "regression":
        keys |= {"num_labels": 1, "problem_type": "regression"}
    return keys


def weights_with_head(family: Family, config: PretrainedConfig, targets: Iterable[str]) -> WeightMap:
    """The family's map for a class with a task's head, whose tensors are called `targets`."""
    before, after = (
        f"{kind.base_model_prefix}." for kind in (getattr(transformers, family.architecture), class_of(config))
    )
    weights = {
        ours: {after + name.removeprefix(before) if name.startswith(before) else name: cut for name, cut in row.items()}
        for ours, row in family.weights.items()
    }
    names = set(targets)
    heads = {
        f"{ours}.{kind}": {f"{theirs}.{kind}": WHOLE}
        for ours, modules in _HEADS.items()
        for theirs in modules
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in names
    }
    return {**weights, **heads}
