"""Convert a checkpoint to a Hugging Face folder: `python tools/convert_to_hf.py CHECKPOINT OUTPUT`."""

import argparse
import sys
from pathlib import Path

from bigtrain.checkpoint.places import place
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.errors import EXIT_USER_ERROR, UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "checkpoint", type=place, help="a run's folder (its newest checkpoint), or one step's; or a URL"
    )
    parser.add_argument("output", type=Path, help="the folder to make")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the weights"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare both models' logits; fail if they differ",
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer file or folder, where the run's folder has none")
    parser.add_argument("--text", type=Path, help="text file to compare on, instead of the validation data")
    parser.add_argument("--family", help="the model_type to write, where the model fits several")
    parser.add_argument("--vocab-size", type=int, help="rows of the vocabulary to write; default: without padding")
    options = parser.parse_args()
    try:
        print(convert_to_hf(**vars(options)).describe())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
