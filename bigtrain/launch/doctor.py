"""What this machine offers to a run, what of it is used, and why the rest is not.

Nothing is started, nothing is compiled, and no network is asked.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bigtrain import __version__
from bigtrain.training.dashboard import logged_in

_LIBRARIES = {  # distribution: what it is for
    "megatron-core": "splits the model",
    "deepspeed": "splits the optimizer (ZeRO)",
    "pyarrow": "reads and writes shards",
    "sentencepiece": "tokenizers from .model files",
    "tokenizers": "tokenizers from tokenizer.json",
    "transformers": "Hugging Face models in and out",
}
_KERNELS = {  # (distribution, module): what is used in its place
    ("transformer-engine", "transformer_engine"): "Megatron-core's own layers on PyTorch's matrix products are used",
    ("apex", "apex"): "BigTrain's own norm on PyTorch is used",
    ("flash-attn", "flash_attn"): "PyTorch's scaled_dot_product_attention is used, with a flash kernel of its own",
    ("liger-kernel", "liger_kernel"): "PyTorch's norm, activation and loss are used",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    found: str
    """Its version or size; "not found"."""
    used: bool
    """Whether a run on this machine would use it."""
    reason: str
    """What it is used for, or why it is not."""


def diagnose() -> list[Finding]:
    """Look at this machine; takes the second or two that importing torch takes."""
    return [
        Finding("bigtrain", __version__, True, str(Path(__file__).parents[1])),
        Finding("python", platform.python_version(), True, sys.executable),
        *_torch(),
        *(_library(name, purpose) for name, purpose in _LIBRARIES.items()),
        _wandb(),
        *(_kernel(name, module, instead) for (name, module), instead in _KERNELS.items()),
        _slurm(),
        *_compilers(),
        *_room(),
    ]


def _torch() -> Iterator[Finding]:
    """torch, its devices, its communication libraries, and the accelerator DeepSpeed takes."""
    found = _version("torch")
    if found is None:
        yield _missing("torch", "the tensors and processes of everything here")
        return
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield Finding(
        "torch", torch.__version__, True, f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    )
    yield _gpus(torch, gpus)
    if dist.is_available() and dist.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        yield Finding("NCCL", nccl, gpus > 0, "collectives between GPUs" if gpus else "there is no GPU: gloo is used")
    else:
        yield Finding("NCCL", "not found", False, "this torch is built without it: gloo is used")
    gloo = dist.is_available() and dist.is_gloo_available()
    yield Finding(
        "gloo",
        "yes" if gloo else "not found",
        gloo and not gpus,
        "there are GPUs: NCCL is used" if gpus else "collectives between CPUs",
    )
    accelerator = os.environ.get("DS_ACCELERATOR") or ("cuda" if gpus else "cpu")
    told = "DS_ACCELERATOR says so" if "DS_ACCELERATOR" in os.environ else "by what torch finds"
    yield Finding("DeepSpeed's accelerator", accelerator, True, f"{told}; none of its compiled ops is used")


def _gpus(torch: Any, gpus: int) -> Finding:
    if gpus:
        names = sorted({torch.cuda.get_device_name(number) for number in range(gpus)})
        return Finding("GPUs", f"{gpus} x {', '.join(names)}", True, "one process each")
    if torch.version.cuda is None and any(Path("/dev").glob("nvidia[0-9]*")):
        return Finding("GPUs", "device files", False, "this torch is a CPU build: install a CUDA build to use them")
    return Finding("GPUs", "not found", False, "computing on the CPU")


def _library(name: str, purpose: str) -> Finding:
    found = _version(name)
    return _missing(name, purpose) if found is None else Finding(name, found, True, purpose)


def _missing(name: str, purpose: str) -> Finding:
    return Finding(name, "not found", False, f"{purpose}; `pip install {name}` (under constraints.txt)")


def _kernel(name: str, module: str, instead: str) -> Finding:
    """An optional kernel. None is used yet, installed or not; PyTorch has its own."""
    if importlib.util.find_spec(module) is None:
        return Finding(name, "not found", False, f"not needed: {instead}")
    return Finding(name, _version(name) or "yes", False, f"not called: {instead}")


def _wandb() -> Finding:
    found = _version("wandb")
    if found is None:
        return _missing("wandb", "dashboards")
    if logged_in():
        return Finding("wandb", found, True, "logged in: runs are online")
    return Finding("wandb", found, True, "not logged in: runs are written offline into their folder")


def _slurm() -> Finding:
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        return Finding("Slurm", "not found", False, "there is no sbatch: runs start on this machine alone")
    version = _ask(sbatch, "--version")
    if not version:
        return Finding(
            "Slurm", "sbatch", False, f"{sbatch} cannot tell its version: is Slurm set up here (SLURM_CONF)?"
        )
    job = os.environ.get("SLURM_JOB_ID")
    return Finding(
        "Slurm", version.removeprefix("slurm "), True, f"inside job {job}" if job else f"jobs go to {sbatch}"
    )


def _compilers() -> Iterator[Finding]:
    for name, option, pattern in (("cc", "-dumpfullversion", r"(\S+)"), ("nvcc", "--version", r"release ([\d.]+)")):
        path = shutil.which(name)
        version = re.search(pattern, _ask(path, option)) if path else None
        found = version[1] if version else "not found"
        yield Finding(name, found, False, "nothing is compiled, neither at install nor at run time")


def _room() -> Iterator[Finding]:
    cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count()
    shared = f"of {all_cores}; the others are not for this process"
    yield Finding("cores", str(cores), True, "for all processes together" if cores == all_cores else shared)
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(fields[key].split()[0]) * 1024 / 1e9 for key in ("MemAvailable", "MemTotal"))
    yield Finding("memory", f"{available:.1f} GB free", True, f"of {total:.1f} GB")
    disk = shutil.disk_usage(".")
    yield Finding("disk", f"{disk.free / 1e9:.1f} GB free", True, f"of {disk.total / 1e9:.1f} GB, at {Path.cwd()}")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _ask(*command: str) -> str:
    """What a program says of itself; empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
