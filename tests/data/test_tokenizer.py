"""Tokenizers against SentencePiece, `tokenizers` and `transformers` themselves."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaTokenizerFast

from bigtrain.data.tokenizer import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    copy_tokenizer,
    load_tokenizer,
)
from bigtrain.errors import DataError

AWKWARD = [
    "",
    "\n",
    "\r\n \r",
    "\t\tx\t",
    " ",
    "   leading and trailing   ",
    "a" + " " * 77 + "b\n\n\n\n    c",
    "\x00\x01\x7f",
    "12345.67e-89",
    "naïve café — “quotes” … €",
    "日本語のテキスト。한국어 العربية עברית हिन्दी ไทย",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "\u00a0\u3000\u2028\u2029\u0085\ufeff",
    "e\u0301 \u212b ﬁ ①",
    "\u2585\u2047",
    "<s>text</s><unk><0x0A><|endoftext|>",
]
TEXT = st.one_of(st.text(), st.text(alphabet=" \n\t\rax1.<>/s|é😀", max_size=200))
WITHOUT_SPACE_SIGN = TEXT.filter(lambda text: "\u2581" not in text)


@pytest.mark.parametrize("kind", ["bpe_path", "unigram_path", "json_path"])
def test_real_and_awkward_text_comes_back_exactly(
    kind: str, sources: list[str], request: pytest.FixtureRequest
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(kind))
    for text in [*sources, *AWKWARD]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.encode_batch([*sources, *AWKWARD]) == [tokenizer.encode(text) for text in [*sources, *AWKWARD]]


@pytest.fixture(scope="module", params=["bpe_path", "unigram_path"])
def trained(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(request.getfixturevalue(request.param))


@given(text=WITHOUT_SPACE_SIGN)
def test_any_text_comes_back_exactly(trained: SentencePieceTokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_sentencepieces_sign_for_a_space_comes_back_as_a_space(bpe: SentencePieceTokenizer) -> None:
    assert bpe.decode(bpe.encode("a\u2581b")) == "a b"


@pytest.mark.parametrize("kind", ["bpe_path", "unigram_path"])
def test_ids_are_sentencepieces_own(kind: str, sources: list[str], request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode_batch([*sources, *AWKWARD]) == [reference.encode(text) for text in [*sources, *AWKWARD]]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (reference.get_piece_size(), reference.piece_to_id("</s>"))


def test_ids_are_those_of_the_tokenizers_package(json_path: Path, sources: list[str]) -> None:
    reference = tokenizers.Tokenizer.from_file(str(json_path))
    tokenizer = load_tokenizer(json_path)
    assert tokenizer.encode_batch(sources) == [encoding.ids for encoding in reference.encode_batch(sources)]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (600, reference.token_to_id("<|endoftext|>"))


@pytest.fixture(scope="module")
def exported(bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizerFast:
    """The Hugging Face tokenizer made from a model trained here, saved to a folder and loaded from it."""
    folder = tmp_path_factory.mktemp("exported")
    LlamaTokenizerFast(
        vocab_file=str(bpe_path),
        legacy=False,
        add_prefix_space=False,
        add_bos_token=False,
        add_eos_token=False,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_transformers_gives_the_same_ids(
    exported: LlamaTokenizerFast, bpe: SentencePieceTokenizer, sources: list[str]
) -> None:
    for text in [*sources, *AWKWARD]:
        ids = bpe.encode(text)
        assert exported(text)["input_ids"] == ids
        assert exported.decode(ids) == text
    assert (exported.bos_token_id, exported.eos_token_id, len(exported)) == (1, bpe.eos_id, bpe.vocab_size)


@given(text=WITHOUT_SPACE_SIGN)
def test_transformers_gives_the_same_ids_of_any_text(
    exported: LlamaTokenizerFast, bpe: SentencePieceTokenizer, text: str
) -> None:
    assert exported(text)["input_ids"] == bpe.encode(text)


@pytest.mark.parametrize("kind", ["bpe_path", "unigram_path", "json_path"])
def test_a_text_cannot_forge_the_end_of_a_document(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(kind))
    ids = tokenizer.encode("a</s>b<s><|endoftext|><|pad|><unk>")
    assert tokenizer.eos_id not in ids
    assert "<|endoftext|>" in tokenizer.decode(ids)


def test_special_tokens_are_had_by_name(bpe_path: Path, json_path: Path) -> None:
    assert load_tokenizer(bpe_path).special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert load_tokenizer(json_path).special_tokens == {"<|endoftext|>": 0, "<|pad|>": 1}


def test_what_a_bert_ends_with_ends_a_document(tmp_path: Path) -> None:
    pieces = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_id == 3


def test_truncation_and_padding_in_the_file_do_not_touch_the_text(json_path: Path, tmp_path: Path) -> None:
    reference = tokenizers.Tokenizer.from_file(str(json_path))
    whole = reference.encode("import this\n" * 9).ids
    reference.enable_truncation(4)
    reference.enable_padding(length=50)
    reference.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode_batch(["import this\n" * 9, "x"])[0] == whole


def test_the_vocabulary_reaches_to_the_largest_id_where_ids_have_gaps(tmp_path: Path) -> None:
    words = tokenizers.models.WordLevel({"</s>": 0, "a": 1, "b": 99}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == 100


@pytest.mark.parametrize("eos_token", ["<|pad|>", {"content": "<|pad|>", "lstrip": False}])
def test_the_config_beside_it_names_the_end_of_document(json_path: Path, tmp_path: Path, eos_token: object) -> None:
    shutil.copy(json_path, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == tokenizers.Tokenizer.from_file(str(json_path)).token_to_id("<|pad|>")

    (tmp_path / "copy").mkdir()
    assert copy_tokenizer(tokenizer, tmp_path / "copy") == "tokenizer.json"
    assert load_tokenizer(tmp_path / "copy").eos_id == tokenizer.eos_id


def test_a_config_that_names_none_leaves_the_usual_names(json_path: Path, tmp_path: Path) -> None:
    shutil.copy(json_path, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": null}')
    assert load_tokenizer(tmp_path).eos_id == 0


def test_a_folder_with_both_kinds_is_read_as_transformers_reads_it(
    json_path: Path, bpe_path: Path, tmp_path: Path
) -> None:
    shutil.copy(json_path, tmp_path)
    shutil.copy(bpe_path, tmp_path)
    assert isinstance(load_tokenizer(tmp_path), HuggingFaceTokenizer)
    assert isinstance(load_tokenizer(tmp_path / "tokenizer.model"), SentencePieceTokenizer)


@pytest.mark.parametrize("kind", ["bpe_path", "json_path"])
def test_a_copy_is_the_same_tokenizer(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(str(request.getfixturevalue(kind)))
    name = copy_tokenizer(tokenizer, tmp_path)
    copy = load_tokenizer(tmp_path)
    assert copy.path == tmp_path / name
    assert copy.fingerprint == tokenizer.fingerprint == hashlib.sha256(tokenizer.path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", b"junk", "tokenizer.model: not a SentencePiece model"),
        ("tokenizer.model", b"", "tokenizer.model: the tokenizer's file is empty"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a Hugging Face tokenizer"),
        ("tokenizer.json", b"\xff", "tokenizer.json: not a Hugging Face tokenizer"),
        ("other.txt", b"", "holds neither tokenizer.json nor tokenizer.model nor a .tiktoken file"),
    ],
)
def test_what_is_no_tokenizer_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.model: the tokenizer cannot be read \(No such file"):
        load_tokenizer(tmp_path / "nothing.model")


def test_a_sentencepiece_model_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("to be or not to be\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=10, eos_id=-1, minloglevel=2
    )
    with pytest.raises(DataError, match="no end-of-sentence piece"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no end-of-document token found"),
        ('{"eos_token": "</s>"}', "tokenizer_config.json: eos_token '</s>' is not in the vocabulary"),
        ("[]", "tokenizer_config.json: not a JSON object"),
        ("{", "tokenizer_config.json: not a JSON object"),
    ],
)
def test_a_tokenizer_json_without_an_end_is_refused(config: str | None, message: str, tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_spans_are_the_characters_that_tokens_stand_for(tokenizer: Path, corpus: list[Path], tmp_path: Path) -> None:
    """Of SentencePiece with bytes and of byte-level BPE, on text whose characters take one to four bytes."""
    from bigtrain.prepare.text import read_documents
    from bigtrain.prepare.train_tokenizer import train_byte_level

    bpe = train_byte_level(read_documents(corpus, pattern="*.py", max_bytes=200_000), tmp_path / "tokenizer.json", 400)
    text = "def été(x):  # 5 km², 日本 🙂 end"
    for found in (load_tokenizer(tokenizer), load_tokenizer(bpe)):
        ids, spans = found.encode_with_spans(text)
        assert ids == found.encode(text)
        assert {place for begin, end in spans for place in range(begin, end)} >= set(range(len(text))) - {
            place for place, char in enumerate(text) if char == " "
        }
        assert [begin for begin, _ in spans] == sorted(begin for begin, _ in spans)
        place = text.index("end")
        said = [number for number, (begin, end) in zip(ids, spans, strict=True) if end > max(place, begin)]
        assert found.decode(said).strip() == "end"
