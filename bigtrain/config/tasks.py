"""Options of fine-tuning: the task, its files and its labels."""

from typing import Literal

from bigtrain.config.section import Section, Text

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
