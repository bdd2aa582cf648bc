"""Death at every point of a save: the newest complete checkpoint is used, and the curve knows of nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bigtrain.config import Config, to_yaml

KILL, TOO_LARGE = signal.SIGKILL, signal.SIGXFSZ
EXPECTED = [  # (where it died, of what signal, newest complete checkpoint then, what is left half-written)
    ("before the folder", KILL, 1, []),
    ("before the file", KILL, 1, [".step-00000002.writing"]),
    ("within the file", TOO_LARGE, 1, [".step-00000002.writing"]),
    ("before the list of tensors", KILL, 2, [".step-00000003.writing"]),
    ("before the list has its name", KILL, 2, [".step-00000003.writing"]),
    ("before the marker", KILL, 3, [".step-00000004.writing"]),
    ("before the folder has its name", KILL, 3, [".step-00000004.writing"]),
    ("before `latest` is written", KILL, 4, []),
    ("before `latest` has its name", KILL, 5, [".latest.writing"]),
    ("before an old one is set aside", KILL, 6, []),
    ("before an old one is removed", KILL, 7, [".step-00000005.removed.writing"]),
    ("within the cleaning after that", KILL, 7, [".step-00000005.removed.writing"]),
    ("before an emptied folder is removed", KILL, 8, [".step-00000006.removed.writing"]),
    ("never", None, 9, []),
]


def rows(run: Path) -> list[tuple[int, float, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["grad_norm"]) for row in lines if "loss" in row]


def test_death_at_every_point_of_a_save(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> None:
    words = [f"data.train={dataset / 'train'}", "checkpoint.interval=1", "model.hidden_dropout=0.1"]
    words += ["training.steps=9", "checkpoint.keep_last=2"]
    lives = Path(__file__).with_name("lives.py")
    config = tmp_path / "run.yaml"
    config.write_text(to_yaml(tiny(*words, f"training.output_dir={tmp_path / 'run'}")))
    subprocess.run([sys.executable, lives, config, tmp_path / "report.json"], check=True, env=os.environ)
    report = json.loads((tmp_path / "report.json").read_text())
    found = [(life["point"], life["killed"], life["newest"], life["left"]) for life in report]
    assert found == EXPECTED
    assert report[-1]["exit_code"] == 0

    whole = tmp_path / "whole.yaml"
    whole.write_text(to_yaml(tiny(*words, f"training.output_dir={tmp_path / 'whole'}")))
    subprocess.run([sys.executable, "-m", "bigtrain", "pretrain", whole], check=True, stdout=subprocess.DEVNULL)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
