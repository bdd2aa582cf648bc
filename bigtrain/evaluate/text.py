"""Tokens as they come, made into text as soon as it is certain."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


class TextOfTokens:
    """The text that follows a prompt, piece by piece; the pieces together are the continuation.

    Tokens cannot be decoded one by one: a character may take several, and a space in front belongs to a token only
    where another stands before it. So a piece is what the text of the last pieces has grown by.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt)
        self._begin, self._told = 0, len(self._ids)

    def add(self, token: int) -> str:
        """What is certain after one more token; empty in the middle of a character."""
        self._ids.append(token)
        return self._grown(last=False)

    def rest(self) -> str:
        """What has been held back, where no more tokens come."""
        return self._grown(last=True)

    def _grown(self, last: bool) -> str:
        before, now = self._decode(self._ids[self._begin : self._told]), self._decode(self._ids[self._begin :])
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and not last):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return now[len(before) :]
