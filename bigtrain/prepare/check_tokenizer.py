"""What a tokenizer makes of text: whether it comes back, and how many tokens it takes."""

from collections.abc import Iterable
from dataclasses import dataclass

from bigtrain.data.tokenizer import Tokenizer

AWKWARD_TEXTS = {
    "white space": " a  b\tc\t\td\n\n e \r\n\r\n\x0b\x0c    \n" + " " * 80 + "x\r \u00a0\u2003\u3000\u2028\u2029\u0085",
    "control characters": "\x00\x01\x1b[0m\x7f\x80",
    "byte order mark": "\ufeffa\ufeff",
    "accents": "naïve café — “quotes” … € and e\u0301 a\u0308\u0323, not é ä\u0323; \u212b ﬁ ① ½",
    "Cyrillic, Greek": "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "right to left": "\u202bעברית עם נִקּוּד\u202c وَاللُّغَةُ العربية \u200fفارسی می\u200cخواهم",
    "Indic": "हिन्दी में क्षत्रिय, தமிழ், ক\u200dষ, ශ්\u200dරී, ภาษาไทยไม่มีช่องว่าง",
    "East Asian": "日本語のテキスト。カタカナ 中文没有空格，한국어 띄어쓰기 \u1112\u1161\u11ab𠮷野家",
    "emoji": "😀👍🏽👩🏿‍💻👩‍👩‍👧‍👦🏳️‍🌈🇫🇷🇯🇵1️⃣❤️🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "rare planes": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀𓀀 \ue000\U000f0000\U0010ffff \ufffe\uffff\ufdd0",
    "numbers, code": "0x1F 3.14e-10 1,234,567 ١٢٣ x_y=[i**2 for i in range(10)];//\\n#!/usr/bin/env",
    "markup": "<s>a</s><unk><0x0A><|endoftext|><|im_start|>[MASK]##ing Ġword Ċ <extra_id_0>",
}
"""Texts that tokenizers lose something of, by what is in them. U+2581 is not among them: it is SentencePiece's sign for
a space, and none of its models gives it back."""

_UNKNOWN = ("<unk>", "[UNK]", "<|unk|>", "<UNK>")
_SHOWN = 16


@dataclass(frozen=True)
class Checked:
    """What `check_tokenizer` found."""

    texts: int
    bytes: int
    """Of the texts in UTF-8."""
    words: int
    """What white space separates: not much of a measure where a language is written without."""
    tokens: int
    unknown: int
    """Tokens that stand for what the tokenizer does not know."""
    lost: int
    """Texts that do not come back."""
    first_lost: str | None
    """Where and how the first of them differs."""
    spelled: list[str]
    """Special tokens that a text can spell, against what `special_tokens` promises."""


def check_tokenizer(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> Checked:
    """Encode and decode texts, each given with a name, which are taken one by one."""
    unknown_ids = {tokenizer.special_tokens[name] for name in _UNKNOWN if name in tokenizer.special_tokens}
    counted = size = words = tokens = unknown = lost = 0
    first_lost = None
    for name, text in texts:
        ids = tokenizer.encode(text)
        counted += 1
        size += len(text.encode())
        words += len(text.split())
        tokens += len(ids)
        unknown += sum(i in unknown_ids for i in ids) if unknown_ids else 0
        decoded = tokenizer.decode(ids)
        if decoded != text:
            lost += 1
            first_lost = first_lost or f"{name}, {_difference(text, decoded)}"
    special = {name: i for name, i in tokenizer.special_tokens.items() if i not in unknown_ids}
    spelled = [name for name, i in special.items() if i in tokenizer.encode(name)]
    return Checked(counted, size, words, tokens, unknown, lost, first_lost, spelled)


def _difference(text: str, decoded: str) -> str:
    """Where two texts part, with what stands there in each."""
    pairs = enumerate(zip(text, decoded, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(decoded)))
    given, got = (part[at : at + _SHOWN] for part in (text, decoded))
    return f"character {at:,}: {given!a} comes back as {got!a}"
