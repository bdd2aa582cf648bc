"""Killed at any moment, and shared among tasks, preparing gives the bytes of an undisturbed run."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigtrain.errors import DataError
from bigtrain.prepare.prepare import prepare, prepare_task

pytestmark = pytest.mark.slow

PROGRAM = """
import itertools, os, pathlib, signal, sys
from bigtrain.prepare.prepare import prepare_task

if __name__ == "__main__":
    inputs, output, tokenizer, workers, task, tasks, kill_at = sys.argv[1:]
    count, rename = itertools.count(1), pathlib.Path.rename
    def counted(self, target):
        if next(count) == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)
    pathlib.Path.rename = counted
    prepare_task([inputs], output, tokenizer, validation_fraction=0.1, tokens_per_shard=60_000, workers=int(workers),
                 task=int(task), tasks=int(tasks))
    print(next(count) - 1)
"""


@pytest.fixture(scope="module")
def inputs(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of lines and some texts: several parts, some of several shards, and rejects."""
    root = tmp_path_factory.mktemp("interrupted") / "in"
    root.mkdir()
    for name in ("a.jsonl", "c.jsonl"):
        with (root / name).open("w", encoding="utf-8") as file:
            for number in range(3600):
                start = number * 7 % 15_000
                file.write(
                    json.dumps({"text": f"{number} {sources[number % len(sources)][start : start + 700]}"}) + "\n"
                )
            file.write("not json\n")
    for number, text in enumerate(sources):
        (root / f"b{number}.txt").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    made = prepare([inputs], output, bpe_path, validation_fraction=0.1, tokens_per_shard=60_000, workers=1)
    assert len(made.train.shards) > 4
    assert made.rejected == 2
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start(
    inputs: Path, output: Path, tokenizer: Path, *, workers: int = 1, kill_at: int = 0
) -> "subprocess.Popen[str]":
    words = [inputs, output, tokenizer, workers, 0, 1, kill_at]
    program = output.with_name("program.py")  # a file: spawned workers import it again
    program.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, str(program), *map(str, words)], stdout=subprocess.PIPE, text=True)


def test_killed_at_every_kind_of_moment(
    inputs: Path, bpe_path: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """SIGKILL before a rename: of a shard, its record, the plan, a shard on its way into the dataset, the dataset."""
    (tmp_path / "whole").mkdir()
    whole = start(inputs, tmp_path / "whole" / "out", bpe_path)
    renames = int(whole.communicate()[0])
    assert renames > 20
    moments = sorted({1, 2, 3, 4, 5, renames - 1, renames, *random.Random(1).sample(range(6, renames - 1), 6)})
    for moment in moments:
        folder = tmp_path / f"at{moment}"
        folder.mkdir()
        killed = start(inputs, folder / "out", bpe_path, kill_at=moment)
        assert killed.wait() == -signal.SIGKILL
        killed.communicate()
        assert not (folder / "out").exists()
        prepare([inputs], folder / "out", bpe_path, validation_fraction=0.1, tokens_per_shard=60_000, workers=1)
        assert contents(folder / "out") == undisturbed, f"killed at rename {moment} of {renames}"
        assert sorted(path.name for path in folder.iterdir()) == ["out", "program.py"]


def test_killed_again_and_again_at_random(
    inputs: Path, bpe_path: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """With workers, which end with the process that was killed."""
    began = time.monotonic()
    start(inputs, tmp_path / "whole", bpe_path, workers=2).communicate()
    seconds = time.monotonic() - began
    assert contents(tmp_path / "whole") == undisturbed
    choose = random.Random(2)
    for _ in range(6):
        process = start(inputs, tmp_path / "out", bpe_path, workers=2)
        try:
            process.wait(timeout=choose.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        if (tmp_path / "out").exists():
            break
    else:
        prepare([inputs], tmp_path / "out", bpe_path, validation_fraction=0.1, tokens_per_shard=60_000, workers=1)
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("tasks", [2, 3])
def test_several_tasks_make_the_same(
    tasks: int, inputs: Path, bpe_path: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    options = {"validation_fraction": 0.1, "tokens_per_shard": 60_000, "workers": 1, "tasks": tasks}
    for task in range(tasks - 1, 0, -1):
        assert prepare_task([inputs], tmp_path / "out", bpe_path, task=task, **options) is None
        assert not (tmp_path / "out").exists()
    made = prepare_task([inputs], tmp_path / "out", bpe_path, task=0, **options)
    assert made is not None
    assert contents(tmp_path / "out") == undisturbed
    late = prepare_task([inputs], tmp_path / "out", bpe_path, task=1, **options)
    assert late == made, "a task that starts when all is done"
    with pytest.raises(DataError, match="exists already"):
        prepare_task([inputs], tmp_path / "out", bpe_path, task=1, **(options | {"tokens_per_shard": 50_000}))


def test_tasks_that_run_at_once_make_one_dataset(
    inputs: Path, bpe_path: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), *map(str, [inputs, tmp_path / "out", bpe_path, 1, task, 3, 0])],
            stdout=subprocess.DEVNULL,
        )
        for task in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "out") == undisturbed


def test_the_beginning_of_another_dataset_is_not_gone_on_with(inputs: Path, bpe_path: Path, tmp_path: Path) -> None:
    prepare_task([inputs], tmp_path / "out", bpe_path, tokens_per_shard=60_000, workers=1, tasks=2)
    with pytest.raises(DataError, match=r"out\.partial: holds the beginning of another dataset .*text_key was 'text'"):
        prepare([inputs], tmp_path / "out", bpe_path, tokens_per_shard=60_000, workers=1, text_key="content")
    with pytest.raises(DataError, match="tokens_per_shard was 60000"):
        prepare([inputs], tmp_path / "out", bpe_path, tokens_per_shard=50_000, workers=1)
