"""`bigtrain tokenizer …`: make tokenizers, and look at what they do."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.arguments import Exclude, Pattern, out

tokenizer_app = typer.Typer(help="Train and check tokenizers.", no_args_is_help=True)

Sample = Annotated[float, typer.Option(help="Text to take, from all over it.")]


class TokenizerType(StrEnum):
    """SentencePiece's two kinds, and two of the `tokenizers` package: byte-level, and BERT's."""

    bpe = "bpe"
    unigram = "unigram"
    byte_bpe = "byte-bpe"
    wordpiece = "wordpiece"


class Normalization(StrEnum):
    """What is done to text before it is encoded."""

    none = "none"
    nfkc = "nfkc"


@tokenizer_app.command("train")
def tokenizer_train(
    inputs: Annotated[list[Path], typer.Argument(help="Files or folders of text.")],
    output: Annotated[Path, typer.Option(help="SentencePiece model to write (.model); for the others a folder.")],
    vocab_size: Annotated[int, typer.Option(help="Pieces, special tokens included.")],
    pattern: Pattern = "*",
    exclude: Exclude = None,
    tokenizer_type: Annotated[
        TokenizerType,
        typer.Option("--type", "--model-type", help="bpe and unigram are SentencePiece's."),
    ] = TokenizerType.bpe,
    special_token: Annotated[
        list[str] | None, typer.Option(help="A piece with an id of its own that no text spells; repeatable.")
    ] = None,
    byte_fallback: Annotated[bool, typer.Option(help="Spell unknown characters in bytes; else <unk>.")] = True,
    split_digits: Annotated[bool, typer.Option(help="Every digit is a piece.")] = True,
    normalization: Annotated[
        Normalization, typer.Option(help="nfkc makes variants of a character one; text does not come back then.")
    ] = Normalization.none,
    lowercase: Annotated[bool, typer.Option(help="For wordpiece: neither capitals nor accents.")] = False,
    sample_megabytes: Sample = 8,
    validation_fraction: Annotated[float, typer.Option(help="What `data prepare` will hold out.")] = 0.0,
) -> None:
    """Train a tokenizer."""
    from bigtrain.prepare.text import read_documents
    from bigtrain.prepare.train_tokenizer import train_tokenizer

    texts = read_documents(
        inputs,
        pattern=pattern,
        exclude=exclude or (),
        max_bytes=int(sample_megabytes * 1e6),
        held_out_fraction=validation_fraction,
    )
    made = train_tokenizer(
        texts,
        output,
        vocab_size,
        tokenizer_type.value,
        special_tokens=special_token or (),
        byte_fallback=byte_fallback,
        split_digits=split_digits,
        normalization=normalization.value,
        lowercase=lowercase,
    )
    out.print(f"{made.path}: {made.vocab_size:,} pieces")


@tokenizer_app.command("check")
def tokenizer_check(
    path: Annotated[Path, typer.Argument(help="Tokenizer's file or folder.")],
    inputs: Annotated[list[Path] | None, typer.Argument(help="Files or folders of text.")] = None,
    pattern: Pattern = "*",
    exclude: Exclude = None,
    sample_megabytes: Sample = 8,
) -> None:
    """Tell whether text comes back, and how many tokens it takes; exit code 1 if any is lost."""
    from bigtrain.data.tokenizer import load_tokenizer
    from bigtrain.prepare.check_tokenizer import AWKWARD_TEXTS, check_tokenizer
    from bigtrain.prepare.text import read_documents

    tokenizer = load_tokenizer(path)
    out.print(
        f"{tokenizer.path}: {tokenizer.vocab_size:,} tokens, {len(tokenizer.special_tokens)} of them special; "
        f"a document ends with {tokenizer.eos_id}"
    )
    results = [("awkward text", check_tokenizer(tokenizer, AWKWARD_TEXTS.items()))]
    for given in inputs or ():
        size = int(sample_megabytes * 1e6)
        texts = read_documents([given], pattern=pattern, exclude=exclude or (), max_bytes=size)
        named = ((f"document {number}", text) for number, text in enumerate(texts, 1))
        results.append((str(given), check_tokenizer(tokenizer, named)))
    for name, found in results:
        out.print(
            f"{name}: {found.bytes / max(found.tokens, 1):.2f} bytes a token, "
            f"{found.tokens / max(found.words, 1):.2f} tokens a word, {found.unknown:,} unknown tokens",
            markup=False,
        )
        if found.first_lost:
            out.print(f"  {found.lost:,} of {found.texts:,} not given back: {found.first_lost}", markup=False)
    if spelled := results[0][1].spelled:
        out.print(f"a text can spell these special tokens: {' '.join(spelled)}", markup=False)
    if any(found.lost for _, found in results):
        raise typer.Exit(1)
    out.print("all text comes back")
