"""Options of fine-tuning: the task, its files and its labels."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from bigtrain.config.section import Section, Text
from bigtrain.errors import ConfigError

Task = Literal["classification", "regression", "tagging", "question_answering", "sequence_to_sequence"]

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
