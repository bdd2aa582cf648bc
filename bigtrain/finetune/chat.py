"""Conversations as tokens, by the chat template of a tokenizer. Nothing here needs torch."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError

from bigtrain.data.examples import ASSISTANT
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import DataError

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = Sequence[dict[str, str]]


class Chat:
    """The template that came with a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """
        Raises:
            DataError: There is none.
        """
        from transformers import AutoTokenizer  # takes a second, which most tasks need not

        folder = tokenizer.path.parent
        has_config = (folder / "tokenizer_config.json").is_file()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_config else None
        if self._tokenizer is None or not self._tokenizer.chat_template:
            raise DataError(
                f"{tokenizer.path}: conversations (finetune.columns.messages) need a chat template, and beside this "
                "tokenizer is none: put it there as chat_template.jinja, with a tokenizer_config.json"
            )
        self._end = tokenizer.eos_id
        self._is_marked = bool(_MARKED.search(self._tokenizer.get_chat_template()))

    def question(self, messages: Messages) -> list[int]:
        """The tokens of a conversation, and those with which an answer begins.

        Raises:
            ValueError: The template takes no such conversation.
        """
        return self._ids(messages, add_generation_prompt=True)

    def conversation(self, messages: Messages) -> tuple[list[int], np.ndarray]:
        """The tokens of a conversation, and which of them an assistant says, to the token that ends a turn: bool.

        The template marks them (`{% generation %}`), or they are what an answer adds to the question before it.

        Raises:
            ValueError: The template spells the beginning of a conversation in another way once there is more of it, or
                takes no such conversation.
        """
        if self._is_marked:
            found = self._applied(messages, return_assistant_tokens_mask=True)
            return found["input_ids"], np.array(found["assistant_masks"], dtype=bool)
        ids = self._ids(messages)
        said = np.zeros(len(ids), dtype=bool)
        for number, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                before, with_answer = self.question(messages[:number]), self._ids(messages[: number + 1])
                if ids[: len(with_answer)] != with_answer or with_answer[: len(before)] != before:
                    raise ValueError(
                        "it spells a beginning in another way once there is more, so that answers are not to be told "
                        "from the rest; mark them in it by {% generation %} and {% endgeneration %}"
                    )
                ends = [place for place in range(len(before), len(with_answer)) if ids[place] == self._end]
                said[len(before) : ends[-1] + 1 if ends else len(with_answer)] = True
        return ids, said

    def _ids(self, messages: Messages, **options: Any) -> list[int]:
        return self._applied(messages, **options)["input_ids"]

    def _applied(self, messages: Messages, **options: Any) -> dict[str, Any]:
        try:
            return self._tokenizer.apply_chat_template(list(messages), return_dict=True, **options)
        except TemplateError as error:
            raise ValueError(str(error)) from None
