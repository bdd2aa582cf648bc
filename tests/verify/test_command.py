"""`bigtrain verify-layouts` and `verify-masks` as a user types them, where all is right and where it is not."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


def verify(what: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    config = str(ROOT / "configs/runs/demo.yaml")
    command = [sys.executable, "-m", "bigtrain", f"verify-{what}", config, "--nproc", "2", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, **environment}
    )


def test_layouts_agree(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    words = ("--steps=2", "parallel.tensor=1", "parallel.zero_stage=1", "--certificate", str(path))
    result = verify("layouts", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["DP2 ZeRO-1", "PP2 ZeRO-1", "PP2 VPP2 ZeRO-1", "CP2 ZeRO-1"]
    assert all(row["agrees"] and row["name"] in result.stdout for row in rows)


@pytest.mark.slow
def test_a_run_goes_on_in_another_layout(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    result = verify("layouts", "--resume", "--steps=2", "parallel.pipeline=1", "--certificate", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    certificate = json.loads(path.read_text())
    arrows, stretches = certificate["arrows"], certificate["stretches"]
    names = [row["name"] for row in stretches]
    assert names[0] == names[-1] == "one process"
    assert {name.split()[0] for name in names[1:-1]} == {"DP2", "CP2", "TP2", "TP2+SP"}
    assert [(arrow["left"], arrow["arrived"]) for arrow in arrows] == list(pairwise(names))
    assert all(arrow["saved"] == arrow["loaded"] and arrow["bit_equal"] for arrow in arrows)
    assert len({arrow["saved"]["weights"] for arrow in arrows}) == len(arrows), "each stretch has trained"
    samples = [sample for arrow in arrows for step in arrow["samples"] for sample in step]
    assert len(set(samples)) == len(samples) == 4 * 2 * len(arrows)
    assert all(row["agrees"] for row in stretches)


SPOIL = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            exec({change!r}, vars(module))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def spoilt(folder: Path, module: str, change: str) -> str:
    """The PYTHONPATH under which `change` is made to a module when it is imported."""
    (folder / "sitecustomize.py").write_text(SPOIL.format(module=module, change=change))
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def verdicts(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The last word of each row of the table, by the layout."""
    assert result.returncode == 1, result.stdout + result.stderr
    words = [line.split() for line in result.stdout.splitlines()]
    return {line[0]: line[-1] for line in words if line and line[0].startswith(("TP", "DP"))}


def test_a_missing_reduction_is_seen(tmp_path: Path) -> None:
    """Without the sum of the norms' gradients over the tensor group, under the right loss."""
    path = spoilt(tmp_path, "bigtrain.parallel.engine", "Engine._reduce_shared = lambda self: None")
    words = ("--steps=1", "parallel.pipeline=1", "parallel.tensor=2", "parallel.zero_stage=1")
    result = verify("layouts", *words, PYTHONPATH=path)
    assert verdicts(result) == {"TP2": "agrees", "TP2+SP": "differs"}, result.stdout
    assert "not all agree" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False])
def test_bf16_has_a_band_that_a_wrong_reduction_leaves(right: bool, tmp_path: Path) -> None:
    """Without the sum of the tied embedding's gradients over the pipeline's ends."""
    path = spoilt(tmp_path, "bigtrain.parallel.engine", "" if right else "Engine._reduce_shared = lambda self: None")
    words = ("--precision=bf16", "--steps=3", "parallel.tensor=1", "parallel.context=1", "parallel.zero_stage=1")
    result = verify("layouts", *words, PYTHONPATH=path)
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(("DP2", "PP2"))]
    pipeline = "agrees" if right else "differs"
    assert [row[-1] for row in rows] == ["agrees", pipeline, pipeline], result.stdout
    assert result.returncode == (0 if right else 1)


@pytest.mark.slow
def test_nothing_leaks(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    result = verify("masks", "--certificate", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(path.read_text())["rows"]
    for packing in ("documents", "stream"):
        shapes = {row["name"].split()[0] for row in rows if row["name"].endswith(packing)}
        assert shapes == {"DP2", "PP2", "CP2", "TP2", "TP2+SP"}
    assert all(row["tight"] and row["moves"]["earlier"] == 0 for row in rows)
    assert all(row["moves"]["others"] in (None, 0) for row in rows)


@pytest.mark.slow
def test_a_leak_between_documents_is_seen(tmp_path: Path) -> None:
    """Where attention takes a sample for one document."""
    change = "CoreAttention._each = lambda self, q, k, v, lengths: self._attend(q[None], k[None], v[None])"
    path = spoilt(tmp_path, "bigtrain.models.attention", change)
    result = verify("masks", "parallel.pipeline=1", "parallel.tensor=1", "parallel.context=1", PYTHONPATH=path)
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith("DP2")]
    assert [row[-1] for row in rows] == ["tight", "leaks"], "the second is that of documents"
    assert verdicts(result) == {"DP2": "leaks"}
    assert "not all is tight" in result.stdout
