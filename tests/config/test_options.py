"""The list of options is frozen in options.txt, and the reference page is made from the schema.

An option is a promise: adding, renaming or dropping one, or changing a default, is a deliberate act.
Having decided, run `python tests/config/test_options.py` and `python tools/make_docs.py`, and commit what they wrote.
"""

import re
import subprocess
import sys
from pathlib import Path

from bigtrain.config import load_config
from bigtrain.config.reference import options

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FROZEN = HERE / "options.txt"


def listed() -> str:
    return "".join(
        f"{option.key}: {option.type} = {'required' if option.default is None else option.default}\n"
        for option in options()
    )


def test_the_list_of_options_is_the_one_that_was_decided() -> None:
    now, decided = set(listed().splitlines()), set(FROZEN.read_text().splitlines())
    assert now == decided, (
        f"options changed: new {sorted(now - decided)}, gone {sorted(decided - now)}. "
        "If that is meant, run: python tests/config/test_options.py"
    )


def test_every_option_is_documented() -> None:
    assert [option.key for option in options() if len(option.description) < 10] == []


def test_the_reference_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools/make_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_tells_every_option_and_its_example_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    assert re.findall(r"^\| `([a-zA-Z_.]+)` \|", page, re.M) == [option.key for option in options()]
    example = tmp_path / "example.yaml"
    example.write_text(re.findall(r"```yaml\n(.*?)```", page, re.S)[0])
    assert load_config(example).training.steps == 10_000


if __name__ == "__main__":
    FROZEN.write_text(listed())
