"""Rules of the `finetune` section that need no file."""

from collections.abc import Iterator

from bigtrain.config.reference import any_of
from bigtrain.config.schema import Config
from bigtrain.config.tasks import OF_TEXTS, OF_WHOLE_TEXTS

METRICS = {
    "classification": ("loss", "accuracy", "f1"),
    "regression": ("loss", "pearson", "spearman"),
    "tagging": ("loss", "accuracy", "f1"),
    "question_answering": ("loss", "f1", "exact_match"),
    "sequence_to_sequence": ("loss", *OF_TEXTS),
}
"""What the best checkpoint of a task can be best in."""


def finetune_problems(config: Config) -> Iterator[str]:
    """A message for each rule that is broken, where the configuration is one of fine-tuning."""
    options, task = config.finetune, config.finetune.task
    yield from _trained(config)
    if task is None:
        if options.train is not None:
            yield f"finetune.train is given, but not finetune.task: one of {any_of(list(METRICS))}"
        return
    if options.train is None:
        yield "finetune.train is missing: give a file of labelled examples"
    for key in ("train", "validation"):
        if getattr(config.data, key) is not None or config.data.sources:
            yield f"data.{key} is for pretraining; give labelled examples as finetune.{key}"
            break
    if options.metric not in METRICS[task]:
        yield f"finetune.metric={options.metric} is none of finetune.task={task}; try {any_of(list(METRICS[task]))}"
    yield from _messages(config)
    yield from _held_out(config)
    yield from _written(config)
    yield from _labels(config)
    if options.classifier_pooling != "cls" and (task not in OF_WHOLE_TEXTS or config.model.architecture != "bert"):
        yield (
            f"finetune.classifier_pooling={options.classifier_pooling} is for finetune.task={any_of(OF_WHOLE_TEXTS)} "
            f"with model.architecture=bert, and these are {task} and {config.model.architecture}; leave it out"
        )
    fits = {"sequence_to_sequence": ("gpt", "t5")}.get(task, ("gpt", "bert"))
    if config.model.architecture not in fits:
        yield f"finetune.task={task} is for model.architecture={any_of(fits)}, and it is {config.model.architecture}"
    if config.parallel.context > 1:
        yield (
            f"parallel.context ({config.parallel.context}) cannot be had with finetune.task, whose texts are short; "
            "set parallel.context=1"
        )
    if config.model.num_experts and task != "sequence_to_sequence":
        yield f"finetune.task={task} cannot be had with model.num_experts, whose router's losses have no place in it"


def _trained(config: Config) -> Iterator[str]:
    options, model = config.finetune, config.model
    if options.lora is not None and options.freeze != "none":
        yield (
            f"finetune.lora trains adapters alone, and finetune.freeze={options.freeze} says what else stays as it is; "
            "leave one of them out"
        )
    if options.freeze == "all" and options.task in (None, "sequence_to_sequence"):
        yield "finetune.freeze=all leaves a task's head to be trained, and there is none; try a number of layers"
    layers = model.num_hidden_layers + model.decoder_layers
    if isinstance(options.freeze, int) and options.freeze > layers:
        yield f"finetune.freeze ({options.freeze}) is more than the model's {layers} layers"
    for key in ("lora", "freeze") if model.num_experts else ():
        if key in options.trained:
            yield f"finetune.{key} cannot be had with model.num_experts: all of a mixture of experts is trained"
    wanted = [] if options.lora is None or options.lora.target_modules == "all-linear" else options.lora.target_modules
    if "gate_proj" in wanted and not model.gated_mlp:
        yield "finetune.lora.target_modules has gate_proj, and without model.gated_mlp there is no gate; try up_proj"


def _messages(config: Config) -> Iterator[str]:
    options = config.finetune
    if options.columns.messages is None:
        return
    if options.task != "sequence_to_sequence" or config.model.architecture != "gpt":
        yield (
            "finetune.columns.messages is a conversation, for finetune.task=sequence_to_sequence with "
            f"model.architecture=gpt, and these are {options.task} and {config.model.architecture}"
        )
    if options.prompt != type(options).model_fields["prompt"].default:
        yield "finetune.prompt is given, and conversations (finetune.columns.messages) have a template; leave it out"


def _held_out(config: Config) -> Iterator[str]:
    options = config.finetune
    held_out = options.validation is not None or options.validation_fraction
    if options.validation is not None and options.validation_fraction:
        yield "finetune.validation and finetune.validation_fraction are both given; leave one of them out"
    needs = [f"finetune.patience ({options.patience})"] if options.patience else []
    needs += [f"finetune.metric={options.metric}"] if options.metric != "loss" else []
    needs += [f"finetune.validation_texts ({options.validation_texts})"] if options.validation_texts else []
    if needs and not held_out:
        yield f"{needs[0]} needs held-out examples: give finetune.validation, or finetune.validation_fraction=0.1"
    if options.patience and not config.training.validation_interval:
        yield (
            f"finetune.patience ({options.patience}) counts validations, and training.validation_interval is 0: there "
            "is one alone, at the end; give the steps between two"
        )


def _written(config: Config) -> Iterator[str]:
    """Texts that a validation writes, for BLEU and chrF."""
    options, p = config.finetune, config.parallel
    if options.validation_texts and options.task != "sequence_to_sequence":
        yield (
            f"finetune.validation_texts ({options.validation_texts}) is for finetune.task=sequence_to_sequence; leave "
            "it out"
        )
    if options.validation_texts == 0 and options.metric in OF_TEXTS:
        yield (
            f"finetune.metric={options.metric} is of texts that a validation writes, and finetune.validation_texts is "
            "0; leave it out, or say how many"
        )
    if not options.texts_written:
        return
    why = f"finetune.metric={options.metric}" if options.metric in OF_TEXTS else "finetune.validation_texts"
    if p.virtual_pipeline > 1:
        yield (
            f"{why} has a validation write texts a token at a time, which is not done in a pipeline of interleaved "
            f"chunks (parallel.virtual_pipeline={p.virtual_pipeline}); set parallel.virtual_pipeline=1, or "
            "finetune.metric=loss"
        )
    if config.model.num_experts and p.experts_lie_apart:
        yield (
            f"{why} has a validation write texts a token at a time, which is not done where experts lie on several "
            "processes; set parallel.tensor=1 and parallel.expert=1, or finetune.metric=loss"
        )


def _labels(config: Config) -> Iterator[str]:
    options = config.finetune
    classes = options.task in ("classification", "tagging")
    if options.labels is not None and not classes:
        yield f"finetune.labels is for classes and tags, and finetune.task={options.task} has none"
    if options.labels is not None and len(set(options.labels)) < max(2, len(options.labels)):
        yield "finetune.labels needs two labels at least, each once"
    if options.class_weights != "none" and options.task != "classification":
        yield f"finetune.class_weights={options.class_weights} is for finetune.task=classification"
    if options.task == "sequence_to_sequence" and options.prompt.count("{source}") != 1:
        yield "finetune.prompt must have {source} once, in whose place the source is put"
