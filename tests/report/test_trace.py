"""What a step read, through the command line, against the trainer's own batches and the source files."""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import Config, to_yaml
from bigtrain.data.batch import micro_batches
from bigtrain.data.loader import CausalText
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import UserError
from bigtrain.report.trace import Trace, trace
from bigtrain.training.inputs import open_train

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture
def run(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> Callable[..., tuple[Path, Config]]:
    """A run's folder as it is after 10 steps, of which every fifth is logged."""

    def make(*overrides: str, sizes: tuple[int, ...] = (4,) * 10) -> tuple[Path, Config]:
        folder = tmp_path / "run"
        config = tiny(f"data.train={dataset / 'train'}", f"training.output_dir={folder}", *overrides)
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(config))
        tokens = [sum(sizes[:step]) * config.training.sequence_length for step in (5, 10)]
        rows = [{"step": step, "tokens": count, "loss": 1.0} for step, count in zip((5, 10), tokens, strict=True)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder, config

    return make


def read_plainly(found: Trace) -> str:
    """The source file's text. Sources are named from the input folder's own name on."""
    return (LIBRARY / found.source).read_text(encoding="utf-8")


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
def test_the_documents_of_a_step_are_those_of_its_batches(
    run: Callable[..., tuple[Path, Config]], packing: str, dataset: Path
) -> None:
    folder, config = run(f"data.packing={packing}")
    found = list(trace(folder, 7, 8))
    train = open_train(config)
    tokenizer = load_tokenizer(dataset / "train")
    for step in (7, 8):
        (batch,) = micro_batches(CausalText(train, packing), (step - 1) * 4, global_batch_size=4, micro_batch_size=4)
        for number, ids in enumerate(batch.input_ids.tolist()):
            position = (step - 1) * 4 + number
            parts = [part for part in found if part.position == position]
            assert all(part.step == step for part in parts)
            assert sum(part.tokens for part in parts) == len(ids) + 1
            text = "".join(part.text for part in parts)
            assert text.startswith(tokenizer.decode([i for i in ids if i != tokenizer.eos_id]))
            assert all(part.text in read_plainly(part) for part in parts)


def test_a_batch_that_was_changed_at_a_logged_step(run: Callable[..., tuple[Path, Config]]) -> None:
    folder, _ = run(sizes=(4,) * 5 + (8,) * 5)
    assert next(trace(folder, 6)).position == 20
    assert {part.position for part in trace(folder, 8)} == set(range(36, 44))


def test_the_command_tells_steps_that_are_not_there(run: Callable[..., tuple[Path, Config]]) -> None:
    folder, _ = run()
    command = [sys.executable, "-m", "bigtrain", "data", "trace", str(folder), "--step"]
    done = subprocess.run([*command, "11"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "ends with step 10; there is no step 11" in done.stderr
    done = subprocess.run([*command, "10", "--json"], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["position"] for row in rows} == {36, 37, 38, 39}
    done = subprocess.run([*command, "10"], capture_output=True, text=True, check=True)
    assert f"{rows[0]['source']} #{rows[0]['record']}" in done.stdout
    with pytest.raises(UserError, match="global_batch_size was changed between the steps 0 and 5"):
        list(trace(run_with_odd_batches(folder), 3))


def run_with_odd_batches(folder: Path) -> Path:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[0]["tokens"] += 16
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
