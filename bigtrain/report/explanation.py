"""Why a model answers as it does, as one HTML file; and the parts of it that a terminal shows as well."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from bigtrain.report.page import STYLE, table

FOR, AGAINST = (47, 111, 173), (217, 98, 43)
"""Red, green and blue of what speaks for the answer, and of what speaks against it."""
STRONGEST = 5
"""So many words on each side are named."""
GAP = 0.05
"""A larger error of the attributions' sum, as a share of what they should sum to, is told."""
_STYLE = """
  .text { font-size: 1.05rem; line-height: 1.9; white-space: pre-wrap; border: 1px solid #e7e9ec; border-radius: 6px;
    padding: .8rem 1rem; overflow-wrap: anywhere; }
  .text span { border-radius: 3px; padding: .1rem 0; }
  .unread { color: #a8aeb5; }
  .quiet { color: #5a6169; }
  td.number { text-align: right; white-space: nowrap; }
  table.nearest th { width: auto; }
"""

Part = tuple[str, float | None]
"""A stretch of a text, and how strongly it speaks for the answer or against it: from -1 to 1; None: it is unread."""


def explanation_page(title: str, explanations: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """The HTML.

    Args:
        title: What is explained.
        explanations: As `Explanation.as_json` gives them.
        notes: To be told before.
    """
    chapters = "\n".join(_chapter(explanation) for explanation in explanations)
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{_STYLE}</style>
<h1>{escape(title)}</h1>
<p class="quiet">What <span style="{_background(0.6)}">speaks for</span> the answer and what
<span style="{_background(-0.6)}">speaks against</span> it: integrated gradients, from the same text with its words
taken out.</p>
{told}
{chapters}
</html>
"""


def parts(text: Mapping[str, Any], largest: float) -> Iterator[Part]:
    """A text from its first character to its last, piece by piece; `largest` is the greatest of all attributions."""
    at = 0
    for begin, end, value in text["pieces"]:
        if begin > at:
            yield text["text"][at:begin], 0.0
        yield text["text"][begin:end], value / largest if largest else 0.0
        at = end
    if at < text["read_to"]:
        yield text["text"][at : text["read_to"]], 0.0
    if text["read_to"] < len(text["text"]):
        yield text["text"][max(at, text["read_to"]) :], None


def largest(explanation: Mapping[str, Any]) -> float:
    """The greatest attribution of a piece, without its sign."""
    return max((abs(value) for text in explanation["texts"] for _, _, value in text["pieces"]), default=0.0)


def strongest_words(explanation: Mapping[str, Any]) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The words that speak most for the answer, and those most against it, each with what its pieces add together."""
    words: list[tuple[str, float]] = []
    for text in explanation["texts"]:
        for word in re.finditer(r"\S+", text["text"]):
            # A piece may begin with the space before it: its last character says where it belongs.
            inside = [value for _, end, value in text["pieces"] if word.start() < end <= word.end()]
            words += [(word.group(), sum(inside))] if inside else []
    ordered = sorted(words, key=lambda pair: -pair[1])
    speak_for = [pair for pair in ordered[:STRONGEST] if pair[1] > 0]
    return speak_for, [pair for pair in ordered[: -STRONGEST - 1 : -1] if pair[1] < 0]


def answer(explanation: Mapping[str, Any]) -> str:
    """What the model says."""
    if not explanation["scores"]:
        return explanation["predicted"]
    shares = sorted(explanation["scores"].items(), key=lambda pair: -pair[1])[:STRONGEST]
    return f"{explanation['predicted']} ({', '.join(f'{label} {share:.3f}' for label, share in shares)})"


def completeness(explanation: Mapping[str, Any]) -> str:
    """What the attributions sum to, and how exactly."""
    difference = explanation["output"] - explanation["baseline"]
    what = "the number" if not explanation["scores"] else f"the logit of {explanation['explained']}"
    gap = f"the attributions sum to {difference + explanation['gap']:+.4f}, a gap of {explanation['gap']:+.4f}"
    advice = "; take more --steps" if abs(explanation["gap"]) > GAP * abs(difference) + 1e-3 else ""
    return (
        f"{what} is {explanation['output']:.4f}, without the words {explanation['baseline']:.4f}: {difference:+.4f}; "
        f"{gap}{advice}"
    )


def word_list(words: Sequence[tuple[str, float]]) -> str:
    """Words with what they add."""
    return ", ".join(f"{word} {value:+.3f}" for word, value in words) or "nothing"


def _chapter(explanation: Mapping[str, Any]) -> str:
    texts = "\n".join(
        f'<div class="text">{"".join(_stretch(*part) for part in parts(text, largest(explanation)))}</div>'
        for text in explanation["texts"]
    )
    speak_for, against = strongest_words(explanation)
    rows = [("answer", answer(explanation))]
    if explanation["scores"]:
        rows.append(("explained", explanation["explained"]))
    rows += [("for it", word_list(speak_for)), ("against it", word_list(against)), ("sum", completeness(explanation))]
    return f"<h2>{escape(explanation['id'])}</h2>\n{texts}\n{table(rows)}\n{_nearest(explanation['nearest'])}"


def _stretch(text: str, strength: float | None) -> str:
    if strength is None:
        return f'<span class="unread" title="not read: the text was cut">{escape(text)}</span>'
    return escape(text) if not strength else f'<span style="{_background(strength)}">{escape(text)}</span>'


def shade(strength: float) -> tuple[int, int, int]:
    """Red, green and blue of the paper under a piece: white where it says nothing."""
    share = 0.75 * min(1.0, abs(strength))
    red, green, blue = (round(255 - share * (255 - full)) for full in (FOR if strength > 0 else AGAINST))
    return red, green, blue


def _background(strength: float) -> str:
    return f"background: rgb{shade(strength)}"


def _nearest(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    rows = "\n".join(
        f'<tr><td class="number">{one["similarity"]:.3f}</td><td>{escape(one["label"])}</td>'
        f'<td class="quiet">{escape(one["id"])}</td><td>{escape(excerpt(one, 400))}</td></tr>'
        for one in found
    )
    return (
        '<h3>The training examples that it takes for the most alike</h3>\n<table class="nearest">\n'
        f"<tr><th>cosine</th><th>label</th><th>where</th><th>text</th></tr>\n{rows}\n</table>"
    )


def excerpt(one: Mapping[str, Any], most: int) -> str:
    """The beginning of a training example, on one line."""
    text = " ".join(" · ".join(part for part in (one["text"], one["pair"]) if part).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
