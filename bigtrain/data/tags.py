"""Tags that mark entities: BIO (IOB2) and BIOES, and what makes a sequence of them sound."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

Scheme = Literal["BIO", "BIOES", "plain"]
"""`plain`: tags that mark no entities, such as parts of speech; each stands for itself."""

_PREFIXES = {"BIO": "BI", "BIOES": "BIES"}


def scheme_of(tags: Iterable[str]) -> Scheme:
    """The scheme that all of `tags` follow.

    Raises:
        ValueError: Some are marked by it and others not.
    """
    given = set(tags)
    marked = {tag for tag in given if tag[1:2] == "-" and tag[0] in "BIES" and len(tag) > 2}
    if not marked:
        return "plain"
    stray = sorted(given - marked - {"O"})
    if stray:
        raise ValueError(
            f"{', '.join(map(repr, sorted(marked)[:3]))} mark entities, but {', '.join(map(repr, stray[:3]))} are tags "
            "neither of BIO nor of BIOES"
        )
    return "BIO" if all(tag[0] in "BI" for tag in marked) else "BIOES"


def problem(tags: Sequence[str], scheme: Scheme) -> str:
    """What contradicts itself in the tags of a sentence; empty: nothing."""
    if scheme == "plain":
        return ""
    for left, right in pairwise(["O", *tags, "O"]):
        inside = right[0] in "IE"
        continues = left[0] in "BI" and left[1:] == right[1:]
        if inside and not continues:
            return f"with {right} where no {right[2:]} has begun"
        if scheme == "BIOES" and left[0] in "BI" and not (inside and continues):
            return f"with {left} that nothing ends"
    return ""


def entities(tags: Sequence[str], scheme: Scheme) -> list[tuple[str, int, int]]:
    """(type, first token, token after the last) of each entity, in order.

    Tags that a model predicts may contradict themselves. As in `conlleval` and `seqeval`'s default mode, a tag of
    another type, and one after which none can follow, ends an entity, and whatever marks a token begins one.
    """
    found: list[tuple[str, int, int]] = []
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        starts = mark in ("B", "S") or (mark in ("I", "E") and name != kind)
        if kind and (mark == "O" or starts):
            found.append((kind, begin, place))
            kind = ""
        if starts and mark != "O":
            begin, kind = place, name
        if kind and scheme == "BIOES" and mark in ("E", "S"):
            found.append((kind, begin, place + 1))
            kind = ""
    return found
