"""The tokens that stand around a text in front of each architecture.

gpt   text <eos>                text <eos> second text <eos>
bert  [CLS] text [SEP]          [CLS] text [SEP] second text [SEP]
      <s> text </s>             <s> text </s></s> second text </s>         of a RoBERTa, which has no segments
t5    text <eos>                text <eos> second text <eos>
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.config import ModelConfig
from bigtrain.data.masked import frame_tokens
from bigtrain.data.pairs import start_id
from bigtrain.data.tokenizer import Tokenizer

_ROBERTAS_END = "</s>"


@dataclass(frozen=True)
class Framing:
    """Ids of these tokens."""

    begin: tuple[int, ...]
    between: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    """What shorter texts are filled up with, and a T5's decoder starts from."""

    def around(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[list[int], int]:
        """The tokens of one text or two with those around them, and how many of them are the first text's."""
        if second is None:
            whole = [*self.begin, *first, *self.end]
            return whole, len(whole)
        head = [*self.begin, *first, *self.between]
        return [*head, *second, *self.end], len(head)

    def room(self, length: int, *, texts: int) -> int:
        """Tokens of one text or two for which a sequence of so many has room."""
        return length - len(self.begin) - len(self.end) - (len(self.between) if texts > 1 else 0)


def framing_of(model: ModelConfig, tokenizer: Tokenizer) -> Framing:
    """What stands around a text in front of a model.

    Raises:
        DataError: The tokenizer lacks a token that is needed.
    """
    if model.architecture != "bert":
        end = (tokenizer.eos_id,)
        return Framing((), end, end, start_id(tokenizer.special_tokens, tokenizer.eos_id))
    frame = frame_tokens(tokenizer.special_tokens)
    end = (frame.sep,)
    twice = model.type_vocab_size == 1 and frame.sep == tokenizer.special_tokens.get(_ROBERTAS_END)
    return Framing((frame.cls,), 2 * end if twice else end, end, frame.pad)
