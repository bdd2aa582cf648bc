"""Train a tokenizer: `python tools/train_tokenizer.py TEXT... --output tokenizer.model --vocab-size 32000`."""

import argparse
import sys
from pathlib import Path

from bigtrain.errors import EXIT_USER_ERROR, UserError
from bigtrain.prepare.text import read_documents
from bigtrain.prepare.train_tokenizer import train_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("inputs", type=Path, nargs="+", help="files or folders of text")
    parser.add_argument("--output", type=Path, required=True, help=".model file to write; for byte-bpe a folder")
    parser.add_argument("--vocab-size", type=int, required=True, help="pieces, special tokens included")
    parser.add_argument("--type", choices=("bpe", "unigram", "byte-bpe"), default="bpe", help="kind of tokenizer")
    parser.add_argument("--special-token", action="append", default=[], help="reserved piece; repeatable")
    parser.add_argument("--pattern", default="*", help="file names to take from folders")
    parser.add_argument("--exclude", action="append", default=[], help="folder or file names to leave out")
    parser.add_argument("--sample-megabytes", type=float, default=8, help="text to learn from, from all over it")
    options = parser.parse_args()
    try:
        texts = read_documents(
            options.inputs,
            pattern=options.pattern,
            exclude=options.exclude,
            max_bytes=int(options.sample_megabytes * 1e6),
        )
        made = train_tokenizer(
            texts, options.output, options.vocab_size, options.type, special_tokens=options.special_token
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"{made.path}: {made.vocab_size:,} pieces")
    return 0


if __name__ == "__main__":
    sys.exit(main())
