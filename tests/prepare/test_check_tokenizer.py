"""The check of a tokenizer, on tokenizers that lose something and on one that does not."""

from pathlib import Path

import tokenizers
from typer.testing import CliRunner

from bigtrain.cli import app
from bigtrain.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from bigtrain.prepare.check_tokenizer import AWKWARD_TEXTS, check_tokenizer


def test_figures_are_counts(bpe: SentencePieceTokenizer) -> None:
    texts = [("one", "a b\n"), ("two", "naïve")]
    found = check_tokenizer(bpe, texts)
    assert (found.texts, found.bytes, found.words, found.unknown, found.lost) == (2, 10, 3, 0, 0)
    assert found.tokens == len(bpe.encode("a b\n")) + len(bpe.encode("naïve"))
    assert found.first_lost is None
    assert found.spelled == []


def test_the_first_text_that_is_lost_is_shown(bpe: SentencePieceTokenizer) -> None:
    found = check_tokenizer(bpe, [("fine", "a"), ("sign", "ab\u2581c"), ("again", "\u2581")])
    assert found.lost == 2
    assert found.first_lost == r"sign, character 2: '\u2581c' comes back as ' c'"


def lossy(folder: Path) -> Path:
    """Words alone, one of them special and yet found in text."""
    words = {"[UNK]": 0, "[SEP]": 1, "a": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[UNK]"])
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_what_is_unknown_is_counted_and_what_a_text_spells_is_named(tmp_path: Path) -> None:
    found = check_tokenizer(load_tokenizer(lossy(tmp_path)), [("all", "a b c a")])
    assert (found.tokens, found.unknown) == (4, 2)
    assert found.spelled == ["<tool>"]


def test_the_command_says_yes(bpe_path: Path, sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(sources[0].encode())
    result = CliRunner().invoke(app, ["tokenizer", "check", str(bpe_path), str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "all text comes back" in result.output
    assert f"{tmp_path}: " in result.output


def test_the_command_says_no(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tokenizer", "check", str(lossy(tmp_path))])
    assert result.exit_code == 1
    assert f"{len(AWKWARD_TEXTS)} of {len(AWKWARD_TEXTS)} not given back: white space, character 0" in result.output
    assert "a text can spell these special tokens: <tool>" in result.output


def test_a_file_with_what_is_lost_decides(bpe_path: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("fine \u2581")
    result = CliRunner().invoke(app, ["tokenizer", "check", str(bpe_path), str(tmp_path / "text")])
    assert result.exit_code == 1
    assert "document 1, character 5" in result.output
