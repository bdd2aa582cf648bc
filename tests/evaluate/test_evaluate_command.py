"""`bigtrain evaluate` as a user has it."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def evaluate(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigtrain", "evaluate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_table_a_file_and_a_page(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("text,sentiment\n" + "".join(f"review {i},{'neg' if i % 3 else 'pos'}\n" for i in range(60)))
    for name, wrong in (("mine", 10), ("other", 4)):
        rows = [
            {"predicted": said, "scores": {said: 0.8, {"neg": "pos", "pos": "neg"}[said]: 0.2}}
            for i in range(60)
            for said in ["neg" if bool(i % 3) != (i % wrong == 0) else "pos"]
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [tmp_path / "mine.jsonl", "--labels", labels, "--column", "label=sentiment"]
    done = evaluate(*words, "--task", "classification", "--against", tmp_path / "other.jsonl")
    assert done.returncode == 0, done.stderr
    assert re.search(r"accuracy +0\.9 +\[0\.8\d*, 0\.9\d*\]", done.stdout)
    assert re.search(r"accuracy +\+0\.15, p = 0\.0\d+ \(McNemar, exact\)", done.stdout)
    written = json.loads((tmp_path / "mine.scores.json").read_text())
    assert written["scores"]["accuracy"]["value"] == 0.9
    assert round(written["scores"]["ece"]["value"], 6) == 0.1
    page = (tmp_path / "mine.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 2
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "http" not in page.replace("https://www.w3.org", "")

    refused = evaluate(*words[:3], "--task", "classification")
    assert refused.returncode == 2
    assert refused.stderr == f"error: {labels}: has no column 'label'; it has 'text', 'sentiment'\n"
