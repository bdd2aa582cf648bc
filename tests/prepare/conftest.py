"""Text files in a folder of a test's own."""

import random
from pathlib import Path

import pytest


@pytest.fixture
def corpus(sources: list[str], tmp_path: Path) -> Path:
    """A folder of text files of very different lengths, two of them equal, and a `.jsonl`-free tree."""
    root = tmp_path / "corpus"
    cut = random.Random(0)
    for number in range(60):
        path = root / f"part{number % 3}" / f"{number:02d}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = sources[number % len(sources)]
        start = cut.randrange(len(text) // 2)
        path.write_text(text[start : start + cut.choice([40, 400, 4000])], encoding="utf-8", newline="")
    return root
