"""Options of fine-tuning: the task, its files and its labels."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from bigtrain.config.section import Probability, Section, Text
from bigtrain.errors import ConfigError

Task = Literal["classification", "regression", "tagging", "question_answering", "sequence_to_sequence"]
Module = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

OF_WHOLE_TEXTS: tuple[Task, ...] = ("classification", "regression")
"""Tasks of which one thing is said of a text."""
OF_TEXTS = ("bleu", "chrf")
"""Metrics of texts that a model has written."""
_TEXTS_WRITTEN = 200


class ColumnsConfig(Section):
    """Names of the columns of a table of examples. CoNLL and SQuAD files have none."""

    text: Text = "text"
    """What is classified or rated."""
    text_pair: Text | None = None
    """A second text, where two are judged together; default: there is none."""
    label: Text = "label"
    """Its class, or the number of a regression."""
    tokens: Text = "tokens"
    """A list of words, for tagging."""
    tags: Text = "tags"
    """The list of their tags."""
    source: Text = "source"
    """What is translated or summarised."""
    target: Text = "target"
    """What comes out."""
    messages: Text | None = None
    """In place of both a conversation for a GPT: a list of messages, each with `role` and `content`, as the tokenizer's
    chat template spells it; the loss is of what the role `assistant` says. Default: there are none."""


class LoraConfig(Section):
    """Low-rank adapters of the layers' matrices (LoRA, arXiv:2106.09685): a matrix W becomes W + lora_alpha / r * B A,
    with A [r, in] and B [out, r], and these alone are trained, beside the task's head. Names are those of `peft`."""

    r: PositiveInt = 8
    """The rank of B A."""
    lora_alpha: PositiveFloat = 8.0
    """What the adapters add is multiplied by `lora_alpha / r`."""
    lora_dropout: Probability = 0.0
    """Dropout probability of what the adapters read."""
    target_modules: Literal["all-linear"] | Annotated[list[Module], Field(min_length=1)] = "all-linear"
    """Which matrices get one: those of queries, keys, values and of attention's output, of the feed-forward's gate,
    its other matrix before the activation, and the one after it, by their names in Llama whatever the architecture."""


class FinetuneConfig(Section):
    """What `bigtrain finetune` learns from labelled examples. It begins with the weights of
    `checkpoint.initialize_from`, of a fine-tuned run the best; shape and tokenizer are those found there. Default:
    random weights."""

    task: Task | None = None
    """Classes or numbers of texts or pairs of texts; tags of words; answers within a text; texts made of texts.
    Default: this is no fine-tuning, but for `bigtrain pretrain`."""
    train: Text | None = None
    """Labelled examples: a table (`.csv`, `.tsv`, `.jsonl`, `.parquet`, `.arrow`) with `columns`, for tagging also
    CoNLL, for question answering SQuAD's JSON."""
    validation: Text | None = None
    """Held-out examples, by which the best checkpoint is chosen; default: none, or as `validation_fraction` says."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of `train` to hold out in place of `validation`, by a hash of the text: equal texts lie on one side."""
    columns: ColumnsConfig = ColumnsConfig()
    labels: list[Text] | None = None
    """All classes, or tags, in order; default: those that occur in `train`."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: every class counts as much in the loss, however many examples it has."""
    classifier_pooling: Literal["cls", "mean"] = "cls"
    """What a class or number is read from in a BERT: its first token, or the mean of all, padding left out
    (ModernBERT's word). A first token that pretraining taught nothing looks anywhere."""
    lora: LoraConfig | None = None
    """Train low-rank adapters in place of the weights; `{}` takes all defaults. Default: train the weights. In
    `bigtrain pretrain`, too."""
    freeze: Literal["none", "embeddings", "all"] | PositiveInt = "none"
    """What stays as it is, and needs neither gradients nor an optimizer's state: the embeddings; with a number also so
    many of the lowest layers, a T5's encoder before its decoder; `all` trains the task's head alone."""
    metric: Literal["loss", "accuracy", "f1", "pearson", "spearman", "exact_match", "bleu", "chrf"] = "loss"
    """What the best checkpoint is best in, on the validation examples."""
    validation_texts: NonNegativeInt | None = None
    """Validation examples, the first ones, whose texts are written at each validation, the likeliest token always, for
    BLEU and chrF; default: 200 where `metric` is one of these, else none."""
    patience: NonNegativeInt = 0
    """Validations in a row without a better one, after which training ends; 0: never before `training.steps`."""
    unanswerable: bool | None = None
    """Whether a question may have no answer in its text; default: whether one of `train` has none."""
    max_answer_length: PositiveInt = 30
    """Tokens of the longest answer to a question."""
    stride: PositiveInt = 128
    """Tokens that two neighbouring windows of a text share, where it does not fit beside a question."""
    prompt: Text = "{source}\n"
    """What a GPT continues to make a text of another, or a T5 reads; the loss is of what follows alone."""
    max_target_length: PositiveInt = 128
    """Tokens of the longest text that a run makes of another, for a validation or `bigtrain evaluate`."""

    @property
    def texts_written(self) -> int:
        """How many a validation writes."""
        if self.validation_texts is None:
            return _TEXTS_WRITTEN if self.metric in OF_TEXTS else 0
        return self.validation_texts

    @property
    def trained(self) -> dict[str, Any]:
        """Which weights are trained, in JSON; empty: all."""
        if self.lora is not None:
            return {"lora": self.lora.model_dump(mode="json", exclude={"lora_dropout"})}
        return {} if self.freeze == "none" else {"freeze": self.freeze}


def columns_of(words: Sequence[str]) -> ColumnsConfig:
    """Names of columns out of words like ``label=stars``.

    Raises:
        ConfigError: A word has another form, or names no column of ours.
    """
    named: dict[str, str] = {}
    for word in words:
        name, _, column = word.partition("=")
        if name not in ColumnsConfig.model_fields or not column:
            raise ConfigError(
                f"column {word!r} is not of the form NAME=COLUMN with one of the names "
                f"{', '.join(ColumnsConfig.model_fields)}"
            )
        named[name] = column
    return ColumnsConfig(**named)
