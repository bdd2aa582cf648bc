"""Options of fine-tuning: the task, its files and its labels."""

from collections.abc import Sequence
from typing import Literal

from bigtrain.config.section import Section, Text
from bigtrain.errors import ConfigError

Task = Literal["classification", "regression", "tagging", "question_answering", "sequence_to_sequence"]


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
