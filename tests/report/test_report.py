"""Reports of runs."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from bigtrain.errors import UserError
from bigtrain.report.build import report
from bigtrain.report.curve import running_mean


def test_the_figures(make_run: Callable[..., Path]) -> None:
    summary = report(make_run()).summary
    assert (summary.name, summary.step, summary.steps, summary.tokens) == ("my run", 40, 50, 128 * 40)
    assert (summary.best_validation_loss, summary.best_validation_step, summary.bits_per_byte) == (2.5, 30, 1.25)
    assert summary.loss == pytest.approx(2 + 4 * np.exp(-5))
    assert (summary.tokens_per_second, summary.model_flops_utilization) == (256.0, None)
    assert summary.training_seconds == 20.0
    assert summary.layouts == ("tensor 2 · data 2 · ZeRO-1", "one process")
    rows = dict(summary.rows())
    assert rows["validation loss"] == "2.5000 (step 30)"
    assert rows["time in steps"] == "20.0 s"
    assert rows["layout"] == "tensor 2 · data 2 · ZeRO-1, then one process"
    assert "model FLOPs utilisation" not in rows


def test_a_run_without_validation(make_run: Callable[..., Path]) -> None:
    run = make_run()
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(row for row in rows if "validation" not in row))
    (run / "events.jsonl").unlink()
    made = report(run)
    assert (made.summary.best_validation_loss, made.summary.layouts) == (None, ())
    assert "validation" not in made.curve
    assert made.png.stat().st_size > 10_000


def test_the_picture(make_run: Callable[..., Path]) -> None:
    made = report(make_run())
    pixels = matplotlib.image.imread(made.png)
    assert pixels.shape[1] == 1440
    for color in ("2f6fad", "d9622b"):  # training, validation
        rgb = np.array([int(color[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        assert (np.abs(pixels[..., :3] - rgb).max(-1) < 0.02).sum() > 200, color


class Reader(HTMLParser):
    """Collects a page's text, its pictures, and whatever it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.pictures, self.fetched = "", [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                (self.pictures if tag == "img" and (value or "").startswith("data:") else self.fetched).append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_beside_it(make_run: Callable[..., Path]) -> None:
    made = report(make_run())
    page = made.page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.fetched == []
    (picture,) = reader.pictures
    assert base64.b64decode(picture.partition(",")[2]) == made.png.read_bytes()
    for words in (
        "my run",
        "2.5000 (step 30)",
        "resume at step 20, one process",
        "path checkpoints/<b>",
        "hidden_size: 64",
    ):
        assert words in reader.text
    assert re.search("2023-11-14 .* UTC", reader.text)
    for table in re.findall("<table>.*?</table>", page, re.DOTALL):
        ElementTree.fromstring(table)


def test_a_last_line_cut_short_is_left_out(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 42, "lo')
    assert report(run).summary.step == 40


@pytest.mark.parametrize(
    ("line", "match"),
    [('{"step": 42, "lo\n', r"metrics.jsonl, line 25: not JSON"), ("7\n", "line 25: not an object with step")],
)
def test_a_damaged_line_is_named(line: str, match: str, make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=match):
        report(run)


def test_what_is_no_run(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has no config.yaml"):
        report(tmp_path)
    run = make_run()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics.jsonl: no step yet"):
        report(run)


def test_a_folder_that_cannot_be_written(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "loss.png").mkdir()
    with pytest.raises(UserError, match=r"loss.png cannot be written"):
        report(run)


def test_the_running_mean() -> None:
    assert running_mean([3.0] * 50, 10) == pytest.approx([3.0] * 50)
    assert running_mean([1.0, 5.0, 2.0], 1) == [1.0, 5.0, 2.0]
    ramp = running_mean(list(range(200)), 20)
    assert ramp[-1] == pytest.approx(199 - 19, abs=0.1)  # an exponential mean of a ramp lags by window - 1
