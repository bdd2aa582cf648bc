"""What a batch job's output file gets to see."""

import pytest

from bigtrain.training.progress import ProgressLine


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss": 3.14159, "tokens_per_second": 12345.6, "step_seconds": 30.5}


def test_a_plain_line_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine(steps=242, done=0, shown=True)
    for step in (1, 2, 3, 242):
        progress.update(row(step))
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/242  loss 3.1416  12,346 tokens/s  2:02:30 left",
        "step 242/242  loss 3.1416  12,346 tokens/s  0:00:00 left",
    ]


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine(steps=2, done=0, shown=False)
    progress.update(row(1))
    progress.say("nothing")
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressLine(steps=2, done=0, shown=True).say("runs/[bold]/x: starting")
    assert capsys.readouterr().out == "runs/[bold]/x: starting\n"
