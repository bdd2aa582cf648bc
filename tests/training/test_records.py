"""What a run leaves to read, also after it was cut down in the middle of a line."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigtrain.errors import StorageError
from bigtrain.training import records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Metrics of five steps and a validation, and a sixth that a crash cut short."""
    path = tmp_path / records.METRICS
    for step in range(1, 6):
        records.append(path, {"step": step, "loss": 1 / step})
        if step == 4:
            records.append(path, {"step": step, "validation_loss": 0.3})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    return path


def steps(path: Path) -> list[int]:
    return [row["step"] for row in records.read_rows(path)]


def test_rows_come_back_without_the_line_cut_short(path: Path) -> None:
    assert list(records.read_rows(path))[3:5] == [{"step": 4, "loss": 0.25}, {"step": 4, "validation_loss": 0.3}]
    assert steps(path) == [1, 2, 3, 4, 4, 5]


def test_what_follows_a_line_cut_short_is_whole(path: Path) -> None:
    records.append(path, {"step": 7, "text": "ü\n"})
    assert steps(path) == [1, 2, 3, 4, 4, 5, 7]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 4, 5, 7]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    records.append(tmp_path / "x.jsonl", {"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    assert (tmp_path / "x.jsonl").read_text() == '{"step": 1, "loss": null, "grad_norm": null}\n'


def test_a_file_of_nothing_but_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step"')
    records.append(path, {"step": 1})
    assert path.read_text() == '{"step": 1}\n'


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert list(records.read_rows(tmp_path / "none.jsonl")) == []
    assert records.forget_after(tmp_path / "none.jsonl", 3) == 0
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("step", "forgotten", "left"), [(4, 1, [1, 2, 3, 4, 4]), (0, 6, []), (9, 0, [1, 2, 3, 4, 4, 5])]
)
def test_later_steps_are_forgotten(path: Path, step: int, forgotten: int, left: list[int]) -> None:
    assert records.forget_after(path, step) == forgotten
    assert steps(path) == left
    records.append(path, {"step": 99})
    assert steps(path) == [*left, 99]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_events_tell_what_happened_when_and_where(tmp_path: Path) -> None:
    records.event(tmp_path, "start", 0, 4, layout={"tensor": 2})
    records.event(tmp_path, "checkpoint", 10, 4, seconds=0.5)
    first, second = records.read_rows(tmp_path / "events.jsonl")
    assert first.pop("time") <= second.pop("time")
    assert first == {"event": "start", "step": 0, "world_size": 4, "layout": {"tensor": 2}}
    assert second == {"event": "checkpoint", "step": 10, "world_size": 4, "seconds": 0.5}


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, as it was afterwards."""
    logger = logging.getLogger("bigtrain")
    before = logger.handlers, logger.level, logger.propagate
    yield logger
    logger.handlers, logger.level, logger.propagate = before


def test_the_first_rank_logs_to_its_file_and_keeps_its_terminal(
    tmp_path: Path, logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    records.log_to_file(tmp_path, 0).info("step %d", 3)
    print("shown")
    assert (tmp_path / "logs/rank-00000.log").read_text().endswith("INFO step 3\n")
    assert capfd.readouterr() == ("shown\n", "")


def test_other_ranks_write_everything_to_their_file(tmp_path: Path) -> None:
    """What Python, a child process and a crash print, in order, and nothing on the terminal."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from bigtrain.training.records import log_to_file\n"
        "print('before', flush=True)\n"
        "log_to_file(Path(sys.argv[1]), 12).info('logged')\n"
        "print('printed', flush=True)\n"
        "os.system('echo from a child')\n"
        "raise RuntimeError('the end')\n"
    )
    process = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (1, "before\n", "")
    lines = (tmp_path / "logs/rank-00012.log").read_text().splitlines()
    assert [lines[0].split()[-1], *lines[1:4], lines[-1]] == [
        "logged",
        "printed",
        "from a child",
        "Traceback (most recent call last):",
        "RuntimeError: the end",
    ]


def test_a_full_disk_is_told_in_a_sentence() -> None:
    with pytest.raises(StorageError, match=r"^/dev/full cannot be written: No space left on device\. .* make room"):
        records.append(Path("/dev/full"), {"step": 1})


def test_a_launcher_says_where_a_log_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert records.own_log(tmp_path, 3) == tmp_path / "logs/rank-00003.log"
    monkeypatch.setenv("BIGTRAIN_LOG", str(tmp_path / "elsewhere"))
    assert records.own_log(tmp_path, 3) == tmp_path / "elsewhere"
