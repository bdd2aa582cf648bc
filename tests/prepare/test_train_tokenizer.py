"""Tokenizers trained here, loaded by the packages they are for."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizerFast
from typer.testing import CliRunner

from bigtrain.cli import app
from bigtrain.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from bigtrain.errors import DataError
from bigtrain.prepare.check_tokenizer import AWKWARD_TEXTS
from bigtrain.prepare.train_tokenizer import (
    BERT_TOKENS,
    train_byte_level,
    train_sentencepiece,
    train_tokenizer,
    train_wordpiece,
)

ROOT = Path(__file__).parents[2]
SPECIAL = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "[PAD]", "[MASK]", "[CLS]", "[SEP]", "<|im_start|>"]
TYPES = ["bpe", "unigram", "byte-bpe"]


@pytest.fixture(scope="module", params=TYPES)
def trained(request: pytest.FixtureRequest, sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One of each type, with special tokens, from a text that spells them."""
    texts = [*sources[:4], "".join(SPECIAL) * 500]
    output = tmp_path_factory.mktemp(request.param) / ("folder" if request.param == "byte-bpe" else "tokenizer.model")
    return train_tokenizer(texts, output, 800, request.param, special_tokens=SPECIAL)


def test_special_tokens_have_ids_that_no_text_gets(trained: Tokenizer) -> None:
    assert trained.special_tokens.keys() >= set(SPECIAL)
    ids = {trained.special_tokens[name] for name in SPECIAL}
    assert len(ids) == len(SPECIAL)
    assert max(ids) < trained.vocab_size == 800
    for text in ["".join(SPECIAL), " ".join(SPECIAL), *SPECIAL, "<|endoftext|></s><unk>"]:
        encoded = trained.encode(text)
        assert not set(encoded) & set(trained.special_tokens.values())
        assert trained.decode(encoded) == text


def test_awkward_text_comes_back(trained: Tokenizer, sources: list[str]) -> None:
    for text in [*AWKWARD_TEXTS.values(), *sources]:
        assert trained.decode(trained.encode(text)) == text


@given(text=st.one_of(st.text(), st.text(alphabet=" \n\t\r\u3000ax1.<>é\u0301\u200d👩🏽🇫🇷\u2028\x00", max_size=100)))
def test_any_text_comes_back(trained: Tokenizer, text: str) -> None:
    is_sentencepiece = not isinstance(trained, HuggingFaceTokenizer)
    expected = text.replace("\u2581", " ") if is_sentencepiece else text
    assert trained.decode(trained.encode(text)) == expected


def test_byte_level_loads_in_transformers_with_its_tokens_roles(sources: list[str], tmp_path: Path) -> None:
    names = [*SPECIAL, "<extra_id_0>"]
    ours = train_tokenizer(sources[:4], tmp_path, 800, "byte-bpe", special_tokens=names)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*sources[:5], *AWKWARD_TEXTS.values()]:
        assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode(text)
    assert (theirs.eos_token_id, theirs.bos_token, len(theirs)) == (ours.eos_id, "<|endoftext|>", 800)
    roles = (theirs.pad_token, theirs.mask_token, theirs.cls_token, theirs.sep_token, theirs.unk_token)
    assert roles == ("[PAD]", "[MASK]", "[CLS]", "[SEP]", None)
    assert theirs("a<extra_id_0>")["input_ids"][-1] == ours.special_tokens["<extra_id_0>"], "to transformers a sentinel"


def test_byte_level_pieces_keep_to_words(sources: list[str], tmp_path: Path) -> None:
    """Marks stay with their letters, digits alone, and no piece goes over a line's end into the next word."""
    text = "हिन्दी में लिखा " * 200 + "year 2024\n" * 300
    vocabulary = train_tokenizer([text], tmp_path, 284, "byte-bpe")
    hindi, years = vocabulary.encode(" हिन्दी"), vocabulary.encode("2024")
    assert (len(hindi), len(years)) == (1, 4)
    joined = train_tokenizer([text], tmp_path / "numbers", 284, "byte-bpe", split_digits=False)
    assert len(joined.encode("2024")) == 1


def test_sentencepiece_numbers_can_be_pieces(tmp_path: Path) -> None:
    path = train_sentencepiece(["year 2024\n" * 300], tmp_path / "a.model", 280, split_digits=False)
    assert len(load_tokenizer(path).encode("2024")) < 4


def test_without_byte_fallback_the_unknown_is_lost(sources: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(sources[:2], tmp_path / "a.model", 400, byte_fallback=False)
    assert tokenizer.special_tokens["<unk>"] in tokenizer.encode("日本")
    assert tokenizer.decode(tokenizer.encode("import this")) == "import this"


@pytest.mark.parametrize("kind", TYPES)
def test_nfkc_makes_variants_one(kind: Any, sources: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(sources[:2], tmp_path / "made", 500, kind, normalization="nfkc")
    assert tokenizer.decode(tokenizer.encode("ﬁ ①")) == "fi 1"


@pytest.mark.parametrize("train", [train_byte_level, train_wordpiece])
def test_training_a_json_is_deterministic(train: Callable[..., Path], sources: list[str], tmp_path: Path) -> None:
    first, second = (train(sources, tmp_path / name, 600).read_bytes() for name in "ab")
    code = (
        "import sys; from pathlib import Path; "
        f"from bigtrain.prepare.train_tokenizer import {train.__name__} as train; "
        "train([Path(p).read_bytes().decode() for p in sys.argv[2:]], sys.argv[1], 600)"
    )
    files = [tmp_path / f"{number}.txt" for number in range(len(sources))]
    for file, text in zip(files, sources, strict=True):
        file.write_bytes(text.encode())
    environment = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", code, str(tmp_path / "c"), *map(str, files)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    assert first == second == (tmp_path / "c" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_loads_in_transformers_as_berts(lowercase: bool, sources: list[str], tmp_path: Path) -> None:
    names = ["[E1]", "<extra>"]
    ours = train_tokenizer(sources, tmp_path, 700, "wordpiece", special_tokens=names, lowercase=lowercase)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, BertTokenizerFast)
    text = "class Parser: # naming 42\n\treturn"
    assert theirs(text)["input_ids"] == [2, *ours.encode(text), 3]
    first, second = len(ours.encode(text)), len(ours.encode("more"))
    assert theirs(text, "more")["token_type_ids"] == [0] * (first + 2) + [1] * (second + 1)
    roles = (theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)
    assert roles == (0, 1, 2, 3, 4)
    assert ours.special_tokens == dict(zip([*BERT_TOKENS, *names], range(7), strict=True))
    assert (ours.eos_id, ours.vocab_size) == (3, 700)
    assert not {*ours.encode(" ".join(ours.special_tokens))} & {0, 2, 3, 4, 5, 6}, "what a text spells is text"
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)
    assert (ours.encode("PARSER") == ours.encode("parser")) == lowercase
    pieces = theirs.convert_ids_to_tokens(range(700))
    assert ours.word_starts().tolist() == [not piece.startswith("##") for piece in pieces]


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 500, "no text was given"),
        (["abc def\n"] * 9, 5000, r"vocab_size 5000 is too large .* at most \d\d pieces"),
        (["abc"], 7, "vocab_size 7 is too small: special tokens and the text's characters alone need 10"),
    ],
)
def test_wordpiece_training_refuses(texts: list[str], vocab_size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        train_wordpiece(texts, tmp_path / "out", vocab_size)
    assert not (tmp_path / "out").exists()


def test_capitals_are_kept_where_text_is_to_come_back(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lowercase is for wordpiece"):
        train_tokenizer(["a"], tmp_path / "out", 300, "byte-bpe", lowercase=True)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "special", "message"),
    [
        ([], 500, [], "no text was given"),
        (["abc def\n"] * 9, 5000, [], r"vocab_size 5000 is too large .* at most 2\d\d pieces"),
        (["abc"], 256, [], "vocab_size 256 is too small: .* need 257"),
        (["spam\n" * 50], 261, ["spam"], "'spam' is also a piece of the text"),
        (["a"], 300, ["[A]", "[A]"], r"'\[A\]' is there already"),
        (["a"], 300, ["<|endoftext|>"], r"'<\|endoftext\|>' is there already"),
        (["a"], 300, [" "], "' ' cannot be a special token"),
    ],
)
def test_byte_level_training_refuses(
    texts: list[str], vocab_size: int, special: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        train_byte_level(texts, tmp_path / "out", vocab_size, special_tokens=special)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("special", ["</s>", "<0x0A>", ""])
def test_sentencepiece_refuses_names_that_are_taken(special: str, sources: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is there already|cannot be a special token"):
        train_sentencepiece(sources[:1], tmp_path / "a.model", 400, special_tokens=[special])


def test_bytes_cannot_do_without_bytes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="byte-bpe is made of bytes"):
        train_tokenizer(["a"], tmp_path / "out", 300, "byte-bpe", byte_fallback=False)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_special_token_that_is_a_word_stays_apart_from_the_word(model_type: Any, tmp_path: Path) -> None:
    path = train_sentencepiece(["spam egg\n" * 500], tmp_path / "a.model", 265, model_type, special_tokens=["spam"])
    tokenizer = load_tokenizer(path)
    assert tokenizer.special_tokens["spam"] not in tokenizer.encode("spam spam")
    assert tokenizer.decode(tokenizer.encode("spam spam")) == "spam spam"


@pytest.fixture
def folder(sources: list[str], tmp_path: Path) -> Path:
    """Texts as files."""
    made = tmp_path / "texts"
    made.mkdir()
    for number, text in enumerate(sources):
        (made / f"{number}.py").write_bytes(text.encode())
    return made


# --- the commands


def test_the_command_trains_and_the_tool_does_the_same(folder: Path, tmp_path: Path) -> None:
    words = [str(folder), "--vocab-size", "500", "--special-token", "[MASK]", "--special-token", "[SEP]"]
    command = ["tokenizer", "train", *words, "--output", str(tmp_path / "a"), "--type", "byte-bpe"]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert "tokenizer.json: 500 pieces" in made.output
    tool = [sys.executable, str(ROOT / "tools/train_tokenizer.py"), *words, "--output", str(tmp_path / "b")]
    subprocess.run([*tool, "--type", "byte-bpe"], check=True, capture_output=True)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "a/tokenizer_config.json").read_text())["mask_token"] == "[MASK]"


def test_the_older_name_of_the_type_is_understood(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.model"
    words = [str(folder), "--output", str(output), "--vocab-size", "400", "--model-type", "unigram"]
    assert CliRunner().invoke(app, ["tokenizer", "train", *words]).exit_code == 0
    model = sentencepiece.SentencePieceProcessor(model_file=str(output))
    assert isinstance(model.get_score(300), float)
    assert load_tokenizer(output).vocab_size == 400


# --- SentencePiece's ways


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic_and_leaves_no_trace_of_the_machine(
    model_type: str, sources: list[str], tmp_path: Path
) -> None:
    paths = [
        train_sentencepiece(sources[:3], tmp_path / name, 500, model_type) for name in ("a.model", "deep/er/b.model")
    ]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert str(tmp_path).encode() not in first


def test_training_is_silent(sources: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_sentencepiece(sources[:2], tmp_path / "a.model", 400)
    assert capfd.readouterr() == ("", "")


def test_a_text_of_one_endless_line_is_trained_on(tmp_path: Path) -> None:
    text = "ab" * 5_000 + "gelegentlich,zuweilen;" * 5_000
    tokenizer = load_tokenizer(train_sentencepiece([text], tmp_path / "a.model", 300))
    assert len(tokenizer.encode("gelegentlich")) == 1


def test_digits_stand_alone(bpe: SentencePieceTokenizer) -> None:
    assert len(bpe.encode("2024")) == 4


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 500, "no text was given"),
        (["", ""], 500, "no text was given"),
        (["abc def\n"] * 9, 5000, r"vocab_size 5000 is too large .* at most \d{3} pieces"),
        (["abcdefgh"] * 9, 100, r"vocab_size 100 is too small: .* need 26\d"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_text_is_refused(
    texts: list[str], vocab_size: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        train_sentencepiece(texts, tmp_path / "a.model", vocab_size)
    assert not (tmp_path / "a.model").exists()


def test_an_output_that_cannot_be_written_is_refused(sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/a\.model: cannot be written"):
        train_sentencepiece(sources[:1], tmp_path / "file" / "a.model", 400)
