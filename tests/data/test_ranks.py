"""tiktoken files: against the `tiktoken` package's own encodings, a slow encoder in plain Python, and `tokenizers`."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
import regex
import tiktoken
import tiktoken_ext.openai_public
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiktoken._educational import SimpleBytePairEncoding

from bigtrain.data.ranks import ENCODINGS
from bigtrain.data.shards import open_dataset
from bigtrain.data.tokenizer import TiktokenTokenizer, copy_tokenizer, load_tokenizer
from bigtrain.data.verify import verify
from bigtrain.errors import DataError
from bigtrain.prepare.check_tokenizer import AWKWARD_TEXTS
from bigtrain.prepare.prepare import prepare

PUBLISHED = ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"]
TEXT = st.one_of(st.text(), st.text(alphabet=" \n\t\rab1٣.,<'sSdLl/\u3000éÉ\u0301ǅʰ日😀", max_size=200))


@pytest.fixture(scope="module")
def ranks(json_path: Path) -> dict[bytes, int]:
    """The ranks of a trained byte-level BPE: the bytes, then what was merged, in that order."""
    merged = json.loads(json_path.read_text())["model"]["merges"]
    byte_of = {chr(c): b for b, c in enumerate(_letters())}
    tokens = [bytes([b]) for b in range(256)]
    tokens += [bytes(byte_of[letter] for letter in left + right) for left, right in merged]
    return {token: rank for rank, token in enumerate(tokens)}


def _letters() -> list[int]:
    """Code points that stand for the 256 bytes in GPT-2's vocabulary: themselves where they can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [b if b in seen else next(others) for b in range(256)]


def write(path: Path, ranks: dict[bytes, int], config: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    if config is not None:
        path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def gpt2(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> TiktokenTokenizer:
    """Those ranks with GPT-2's way to cut."""
    path = write(tmp_path_factory.mktemp("ranks") / "r50k_base.tiktoken", ranks)
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, TiktokenTokenizer)
    return tokenizer


def published(name: str, ranks: dict[bytes, int], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the `tiktoken` package says of an encoding, but for the ranks that it would download."""
    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_args, **_options: ranks)
    return tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[name]()


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_encodings_are_those_of_the_package(
    name: str, ranks: dict[bytes, int], sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = published(name, ranks, monkeypatch)
    theirs = tiktoken.Encoding(
        name, pat_str=told["pat_str"], mergeable_ranks=ranks, special_tokens=told["special_tokens"]
    )
    ours = load_tokenizer(write(tmp_path / f"{name}.tiktoken", ranks))
    texts = [*sources, *AWKWARD_TEXTS.values(), "IT'S it's I'LL 12345 a\r\n\r\n  b/\n/", "   ", "x   ", "x\n  "]
    assert ours.encode_batch(texts) == [theirs.encode_ordinary(text) for text in texts]
    assert ours.special_tokens == told["special_tokens"]
    assert (ours.vocab_size, ours.eos_id) == (theirs.n_vocab, theirs.eot_token)


@pytest.fixture(scope="module", params=PUBLISHED)
def patterns(request: pytest.FixtureRequest) -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    """Ours, and the package's."""
    with pytest.MonkeyPatch.context() as patch:
        told = published(request.param, {}, patch)
    return regex.compile(ENCODINGS[request.param][0]), regex.compile(told["pat_str"])


@given(text=TEXT)
def test_known_patterns_cut_any_text_as_the_packages_do(
    patterns: tuple[regex.Pattern[str], regex.Pattern[str]], text: str
) -> None:
    ours, theirs = ([match.group() for match in pattern.finditer(text)] for pattern in patterns)
    assert ours == theirs
    assert "".join(ours) == text


@given(text=TEXT)
def test_ids_are_those_of_a_slow_encoder(gpt2: TiktokenTokenizer, text: str) -> None:
    slow = SimpleBytePairEncoding(pat_str=ENCODINGS["r50k_base"][0], mergeable_ranks=gpt2.definition.ranks)
    assert gpt2.encode(text) == slow.encode(text, visualise=None)


def test_ids_stand_for_the_pieces_of_the_tokenizer_that_the_ranks_are_from(
    gpt2: TiktokenTokenizer, json_path: Path, sources: list[str]
) -> None:
    reference = tokenizers.Tokenizer.from_file(str(json_path))
    letters = _letters()
    pieces = {rank: "".join(chr(letters[b]) for b in token) for token, rank in gpt2.definition.ranks.items()}
    for text in [*sources, *AWKWARD_TEXTS.values()]:
        expected = reference.encode(text, add_special_tokens=False)
        if "<|endoftext|>" not in text:
            assert [pieces[i] for i in gpt2.encode(text)] == expected.tokens


@given(text=TEXT)
def test_any_text_comes_back(gpt2: TiktokenTokenizer, text: str) -> None:
    assert gpt2.decode(gpt2.encode(text)) == text


def test_a_text_cannot_forge_a_special_token(gpt2: TiktokenTokenizer) -> None:
    ids = gpt2.encode("a<|endoftext|>")
    assert gpt2.eos_id not in ids
    assert gpt2.decode([*ids, gpt2.eos_id]) == "a<|endoftext|><|endoftext|>"


@pytest.mark.parametrize("space", [" ", "\n"])
def test_endless_white_space_comes_back(gpt2: TiktokenTokenizer, space: str) -> None:
    """The package panics at a million characters of it."""
    text = "a" + space * (1_050_000) + "b" + space * 10 + "c"
    assert gpt2.decode(gpt2.encode(text)) == text


def test_a_copy_holds_everything_in_one_file(ranks: dict[bytes, int], tmp_path: Path) -> None:
    config = {"pattern": r"\s|\S+", "special_tokens": {"<end>": 5000, "<pad>": 5001}, "eos_token": "<end>"}
    tokenizer = load_tokenizer(write(tmp_path / "a" / "own.tiktoken", ranks, config))
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (5000, 5002)
    (tmp_path / "b").mkdir()
    name = copy_tokenizer(tokenizer, tmp_path / "b")
    assert [file.name for file in (tmp_path / "b").iterdir()] == [name]
    copy = load_tokenizer(tmp_path / "b")
    assert (copy.fingerprint, copy.special_tokens) == (tokenizer.fingerprint, tokenizer.special_tokens)
    assert copy.encode("to be") == tokenizer.encode("to be")
    assert load_tokenizer(tmp_path / "b" / name).fingerprint == copy.fingerprint

    shuffled = list(ranks.items())
    random.Random(0).shuffle(shuffled)
    again = load_tokenizer(write(tmp_path / "c" / "x.tiktoken", dict(shuffled), config))
    assert again.fingerprint == tokenizer.fingerprint, "the order of lines says nothing"
    other = load_tokenizer(write(tmp_path / "d" / "x.tiktoken", ranks, {**config, "pattern": r"\s+|\S+"}))
    assert other.fingerprint != tokenizer.fingerprint, "the same ranks, other ids"


def test_ranks_are_found_under_another_name(ranks: dict[bytes, int], tmp_path: Path) -> None:
    """Llama 3's file is called `tokenizer.model`, as SentencePiece's are."""
    write(tmp_path / "tokenizer.model", ranks, {"encoding": "llama3", "special_tokens": {"<extra>": 128256}})
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (128001, 128257)
    assert tokenizer.special_tokens["<|eot_id|>"] == 128009


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, None, r"own.tiktoken: a tiktoken file does not say how text is cut; .*\"encoding\": NAME.*cl100k_base"),
        ({}, {"encoding": "cl100k"}, "encoding 'cl100k' is not known; known are r50k_base"),
        ({}, {"pattern": "("}, "its pattern is not a regular expression"),
        ({}, {"pattern": "."}, "no end-of-document token found"),
        ({}, {"pattern": ".", "special_tokens": {"</s>": 7}}, "'</s>' have the same id 7"),
        ({}, {"pattern": ".", "special_tokens": ["</s>"]}, "special_tokens .* is not an object of names and ids"),
        (
            {},
            {"pattern": ".", "special_tokens": {"x": 900}, "eos_token": "y"},
            "eos_token 'y' is not in",
        ),
        ({b"A": None}, {"encoding": "qwen"}, "1 of the 256 bytes have no rank"),
        ({b"AA": 3}, {"encoding": "qwen"}, "have the same id 3"),
    ],
)
def test_what_cannot_be_used_is_refused(
    ranks: dict[bytes, int],
    change: dict[bytes, int | None],
    config: dict[str, Any] | None,
    message: str,
    tmp_path: Path,
) -> None:
    changed = {token: rank for token, rank in {**ranks, **change}.items() if rank is not None}
    path = write(tmp_path / "own.tiktoken", changed, config)
    with pytest.raises(DataError, match=message):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tiktoken", b"YQ== 0\n\nYg== x\n", "line 3 is not a token in base64"),
        ("a.tiktoken", b"junk", "line 1 is not a token in base64"),
        ("a.tiktoken", b"", "the tokenizer's file is empty"),
        ("a.tiktoken.json", b"{}", "not a tiktoken tokenizer in one file"),
        ("a.tiktoken.json", b"[", "not a tiktoken tokenizer in one file"),
    ],
)
def test_what_is_no_rank_file_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"encoding": "qwen"}')
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path / name)


def test_a_dataset_is_made_with_one_and_keeps_it(ranks: dict[bytes, int], sources: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "r50k_base.tiktoken", ranks)
    (tmp_path / "text").mkdir()
    for number, text in enumerate(sources):
        (tmp_path / "text" / f"{number}.txt").write_bytes(text.encode())
    prepare([tmp_path / "text"], tmp_path / "data", path, workers=2)
    path.unlink()
    verify(tmp_path / "data" / "train")
    dataset = open_dataset(tmp_path / "data" / "train")
    tokenizer = dataset.load_tokenizer()
    documents = [dataset.document(number).tokens.tolist() for number in range(dataset.documents)]
    assert all(document[-1] == 50256 for document in documents)
    assert [tokenizer.decode(document[:-1]) for document in documents] == sources
