"""The doctor, on this machine and on one made up around it."""

import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bigtrain import __version__
from bigtrain.launch.doctor import Finding, diagnose

KERNELS = ["transformer-engine", "apex", "flash-attn", "liger-kernel"]


def findings() -> dict[str, Finding]:
    found = diagnose()
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def program(folder: Path, name: str, *lines: str) -> None:
    (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / name).chmod(0o755)


def test_versions_are_those_installed() -> None:
    found = findings()
    assert found["bigtrain"].found == __version__
    assert found["python"].found == platform.python_version()
    assert found["torch"].found == torch.__version__
    for name in ("megatron-core", "deepspeed", "pyarrow", "sentencepiece", "tokenizers", "transformers"):
        assert found[name] == Finding(name, metadata.version(name), True, found[name].reason)
        assert found[name].reason


def test_gpus_and_collectives_agree_with_torch() -> None:
    found = findings()
    gpus = torch.cuda.is_available()
    assert found["GPUs"].used == gpus
    assert found["NCCL"].used == gpus
    assert found["gloo"].used != gpus
    assert found["DeepSpeed's accelerator"].found == ("cuda" if gpus else "cpu")


def test_every_thing_unused_has_its_reason() -> None:
    found = findings()
    assert all(finding.found and finding.reason for finding in found.values())
    assert all(found[name].found == "not found" for name in KERNELS)
    assert found["flash-attn"].reason.startswith("not needed: PyTorch's scaled_dot_product_attention is used")


def test_a_kernel_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen, not imported, and not said to be used."""
    (tmp_path / "flash_attn.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "flash_attn-2.8.3.dist-info").mkdir()
    (tmp_path / "flash_attn-2.8.3.dist-info" / "METADATA").write_text("Name: flash-attn\nVersion: 2.8.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = findings()["flash-attn"]
    assert (found.found, found.used) == ("2.8.3", False)
    assert found.reason.startswith("not called: ")


def test_slurm_is_found_by_asking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert findings()["Slurm"].reason.startswith("there is no sbatch")
    program(tmp_path, "sbatch", "exit 1")
    assert findings()["Slurm"] == Finding("Slurm", "sbatch", False, findings()["Slurm"].reason)
    program(tmp_path, "sbatch", "echo slurm 24.05.1")
    assert findings()["Slurm"] == Finding("Slurm", "24.05.1", True, f"jobs go to {tmp_path}/sbatch")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert findings()["Slurm"].reason == "inside job 77"


def test_compilers_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "nvcc", "echo Cuda compilation tools, release 13.0, V13.0.48")
    found = findings()
    assert (found["cc"].found, found["cc"].used) == ("not found", False)
    assert (found["nvcc"].found, found["nvcc"].used) == ("13.0", False)


@pytest.mark.parametrize(
    ("key", "netrc", "word"),
    [
        ("0" * 40, None, "logged in: runs are online"),
        (None, "machine api.wandb.ai login user password 0", "logged in: runs are online"),
        (None, "machine example.com login user password 0", "not logged in: runs are written offline"),
        (None, "no netrc at all", "not logged in"),
        (None, None, "not logged in"),
    ],
)
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, netrc: str | None, word: str) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    assert findings()["wandb"].reason.startswith(word)
