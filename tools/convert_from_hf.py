"""Convert a Hugging Face folder to a checkpoint to train on from: `python tools/convert_from_hf.py FOLDER OUTPUT`."""

import argparse
import sys
from pathlib import Path

from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.merge import with_adapter
from bigtrain.errors import EXIT_USER_ERROR, UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="a Hugging Face folder")
    parser.add_argument("output", type=Path, help="the folder to make: a checkpoint, the tokenizer, a model to extend")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare both models' logits; fail if they differ",
    )
    parser.add_argument("--text", type=Path, help="text file to compare on")
    parser.add_argument("--vocab-size", type=int, help="pad the vocabulary to so many rows")
    parser.add_argument("--adapter", type=Path, help="folder of a LoRA adapter to merge, as peft saves it")
    options = parser.parse_args()
    given = {name: value for name, value in vars(options).items() if name not in ("folder", "adapter")}
    try:
        with with_adapter(options.folder, options.adapter, options.output) as folder:
            print(convert_from_hf(folder, **given).describe())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
