"""`bigtrain verify-layouts` as a user types it: it agrees where all is right, and it sees what is wrong."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


def verify(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    config = str(ROOT / "configs/runs/demo.yaml")
    command = [sys.executable, "-m", "bigtrain", "verify-layouts", config, "--nproc", "2", "--steps", "2", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, **environment}
    )


def test_layouts_agree(tmp_path: Path) -> None:
    result = verify("parallel.tensor=1", "parallel.zero_stage=1", "--certificate", str(tmp_path / "found.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["DP2 ZeRO-1", "PP2 ZeRO-1", "PP2 VPP2 ZeRO-1"]
    assert all(row["agrees"] and row["name"] in result.stdout for row in rows)


def test_a_run_goes_on_in_another_layout(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    result = verify("--resume", "parallel.pipeline=1", "parallel.sequence=true", "--certificate", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    certificate = json.loads(path.read_text())
    arrows, stretches = certificate["arrows"], certificate["stretches"]
    names = [row["name"] for row in stretches]
    assert names[0] == names[-1] == "one process"
    assert [(arrow["left"], arrow["arrived"]) for arrow in arrows] == list(pairwise(names))
    assert all(arrow["saved"] == arrow["loaded"] and arrow["bit_equal"] for arrow in arrows)
    assert len({arrow["saved"]["weights"] for arrow in arrows}) == len(arrows), "each stretch has trained"
    samples = [sample for arrow in arrows for step in arrow["samples"] for sample in step]
    assert len(set(samples)) == len(samples) == 4 * 2 * len(arrows)
    assert all(row["agrees"] for row in stretches)


BROKEN = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "bigtrain.parallel.engine":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.Engine._reduce_shared = lambda self: None
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def test_a_missing_reduction_is_seen(tmp_path: Path) -> None:
    """Without the sum of the norms' gradients over the tensor group, under the right loss."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = verify("parallel.pipeline=1", "parallel.tensor=2", "parallel.zero_stage=1", PYTHONPATH=path)
    assert result.returncode == 1, result.stdout + result.stderr
    words = [line.split() for line in result.stdout.splitlines()]
    verdicts = {line[0]: line[-1] for line in words if line and line[0].startswith("TP2")}
    assert verdicts == {"TP2": "agrees", "TP2+SP": "differs"}, result.stdout
    assert "not all agree" in result.stdout
