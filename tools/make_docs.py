"""Write the generated part of docs/configuration.md from the schema; with --check, only say whether it is current."""

import sys
from pathlib import Path

from bigtrain.config.reference import markdown

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
MARK = "<!-- Below: made from bigtrain/config/schema.py by `python tools/make_docs.py`. -->\n"


def main(arguments: list[str]) -> int:
    now = PAGE.read_text(encoding="utf-8")
    written, mark, _ = now.partition(MARK)
    if not mark:
        print(f"{PAGE} has lost the line {MARK.strip()}", file=sys.stderr)
        return 1
    wanted = f"{written}{mark}\n{markdown()}"
    if now == wanted:
        return 0
    if arguments == ["--check"]:
        print(f"{PAGE} is out of date: run python tools/make_docs.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
