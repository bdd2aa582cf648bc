"""Tokenise text into Arrow shards: `python tools/prepare_data.py TEXT... --output data --tokenizer tokenizer.model`."""

import argparse
import sys
from pathlib import Path

from bigtrain.errors import EXIT_USER_ERROR, UserError
from bigtrain.prepare.prepare import prepare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("inputs", type=Path, nargs="+", help="files or folders of text, JSON lines, Parquet or Arrow")
    parser.add_argument("--output", type=Path, required=True, help="folder to make: OUTPUT/train, OUTPUT/validation")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model or tokenizer.json")
    parser.add_argument("--pattern", default="*", help="file names to take from folders")
    parser.add_argument("--exclude", action="append", default=[], help="folder or file names to leave out")
    parser.add_argument("--text-key", default="text", help="field of a JSON line, or column, that holds the text")
    parser.add_argument("--validation-fraction", type=float, default=0.0, help="share of the documents to hold out")
    parser.add_argument("--workers", type=int, help="processes; default: one a core")
    options = vars(parser.parse_args())
    try:
        made = prepare(options.pop("inputs"), options.pop("output"), options.pop("tokenizer"), **options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"{made.train.documents:,} documents, {made.train.tokens:,} tokens; {made.rejected:,} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
