"""CoNLL files: a token and its tag a line, an empty line between sentences."""

from collections.abc import Iterator
from pathlib import Path

from bigtrain.errors import DataError

Sentence = tuple[str, tuple[str, ...], tuple[str, ...] | None]
"""Where it begins, its tokens, its tags."""


def read_conll(path: Path, labelled: bool) -> Iterator[Sentence]:
    """The sentences of a file.

    A line's columns are divided by tabs, or else by spaces; the first is the token, the last its tag. `-DOCSTART-`
    begins a document and is no sentence; lines that begin with `# ` are comments where a file has columns by tabs.

    Args:
        path: The file.
        labelled: Else a line may be a token alone.

    Raises:
        DataError: It is not UTF-8, or a line has no tag.
    """
    tokens: list[str] = []
    tags: list[str] = []
    begin = 0
    for number, line in enumerate([*_lines(path), ""], 1):
        text = line.strip("\r\n ") if line.strip() else ""
        if text and not text.startswith(("-DOCSTART-", "# ")):
            begin = number if not tokens else begin
            columns = text.split("\t") if "\t" in text else text.split()
            if len(columns) > 1:
                tags.append(columns[-1].strip())
            elif labelled:
                raise DataError(f"{path}, line {number}: {text!r} has no tag; a line is a token, a tab and its tag")
            tokens.append(columns[0].strip())
        elif tokens:
            if tags and len(tags) != len(tokens):
                raise DataError(f"{path}, line {begin}: some tokens of this sentence have a tag and others do not")
            yield f"line {begin}", tuple(tokens), tuple(tags) if tags else None
            tokens, tags = [], []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
