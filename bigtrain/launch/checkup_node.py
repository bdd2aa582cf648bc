"""The program that a checkup starts on every node: what the node finds out of itself, as one line of JSON.

    python -m bigtrain.launch.checkup_node '{"seconds": 60, …}'

It always answers in time: where something hangs, with what it found before, and what it was at.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from bigtrain import __version__
from bigtrain.data.manifest import check_files, local_sizes, read_manifest
from bigtrain.data.places import is_local, place
from bigtrain.data.shards import open_dataset
from bigtrain.errors import UserError
from bigtrain.launch.checkup_answer import LINE, Answer, Asked
from bigtrain.launch.environment import World, gpus_on_node, world_from_environment

_PACKAGES = ("torch", "numpy", "pydantic", "megatron-core", "deepspeed", "pyarrow", "tokenizers", "transformers")
_WRITE_BYTES, _WRITE_SECONDS = 2**26, 10.0
_CHUNK = 2**22
_MARKER_SECONDS = 5.0


def main() -> None:
    """Find out, say it, and leave, whatever may still hang."""
    asked = Asked(**json.loads(sys.argv[1]))
    deadline = time.monotonic() + asked.seconds
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    answer = Answer(name, int(os.environ.get("SLURM_NODEID", "0")))
    worker = threading.Thread(target=_look, args=(asked, answer, deadline), daemon=True)
    worker.start()
    worker.join(asked.seconds)
    sys.stdout.write(f"{LINE}{json.dumps(asdict(answer))}\n")
    sys.stdout.flush()
    os._exit(0)  # a thread that waits for a dead file system or a dead node would be waited for


def _look(asked: Asked, answer: Answer, deadline: float) -> None:
    try:
        _look_at_all(asked, answer, deadline)
    except Exception as error:
        answer.fault = f"{answer.doing}: {type(error).__name__}: {error}"
    answer.doing = ""


def _look_at_all(asked: Asked, answer: Answer, deadline: float) -> None:
    """In the order of what depends on what; the meeting of all nodes is last."""
    answer.doing = "reading Slurm's variables"
    world = world_from_environment(1, os.environ)
    answer.nodes = world.nnodes
    answer.doing = "reading versions of Python packages"
    answer.environment = environment()
    answer.slurm_gpus = gpus_on_node(os.environ)
    answer.doing = "asking nvidia-smi"
    if answer.slurm_gpus and os.environ.get("DS_ACCELERATOR") != "cpu":
        _ask_driver(answer)
    answer.doing = "opening the datasets"
    answer.data_errors = [error for key, path in asked.datasets.items() if (error := _data_error(key, path))]
    answer.doing = f"writing to {Path(asked.marker).parent}"
    _try_folder(asked, answer)
    answer.doing = "importing torch"
    _meet(world, answer, deadline)


def _meet(world: World, answer: Answer, deadline: float) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what fails is told by us
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a partner that is gone is an error, not the end
    import torch

    from bigtrain.launch.checkup_pairs import meet

    answer.cuda_build = torch.version.cuda is not None and os.environ.get("DS_ACCELERATOR") != "cpu"
    answer.torch_gpus = torch.cuda.device_count() if answer.cuda_build else 0

    def at(doing: str) -> None:
        answer.doing = doing

    meet(world, deadline, answer.network, use_gpu=answer.torch_gpus > 0, at=at)


def environment() -> dict[str, str]:
    """Versions of what the ranks of a run must have in common."""
    found = {"python": platform.python_version(), "bigtrain": f"{__version__} (sources {_sources()})"}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not found"
    return found


def _sources() -> str:
    """The beginning of a hash of the package's files: a checkout that was edited keeps its version."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _ask_driver(answer: Answer) -> None:
    """Of all GPUs here, where there is an NVIDIA driver."""
    try:
        asked = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        return
    if asked.returncode:
        answer.gpu_faults = [f"nvidia-smi: {(asked.stdout or asked.stderr).strip()}"]
        return
    driver, answer.gpu_faults, answer.gpu_throttled = gpu_health(asked.stdout)
    answer.environment["NVIDIA driver"] = driver


def gpu_health(text: str) -> tuple[str, list[str], list[str]]:
    """What `nvidia-smi -q -x` tells: the driver's version, GPUs that are not fit, GPUs whose clocks are held down.

    Not fit: uncorrected memory errors since the driver was loaded, rows of memory to be remapped at the next reset or
    that could not be. Where a card does not count these, or an older driver, nothing is said.
    """
    log = ElementTree.fromstring(text)
    faults, throttled = [], []
    for number, gpu in enumerate(log.iter("gpu")):
        counts = [int(tag.text or 0) for tag in gpu.findall("ecc_errors/volatile/*") if _counts_uncorrected(tag)]
        if sum(counts):
            faults.append(f"GPU {number}: {sum(counts)} uncorrected memory errors")
        for state, meaning in (("pending", "waits for a reset"), ("failure", "has failed")):
            if gpu.findtext(f"remapped_rows/remapped_row_{state}") == "Yes":
                faults.append(f"GPU {number}: remapping of memory rows {meaning}")
        for section in ("clocks_event_reasons", "clocks_throttle_reasons"):  # newer drivers', older ones'
            for tag in gpu.findall(f"{section}/*"):
                reason = tag.tag.partition("_reason_")[2] or tag.tag.partition("_reasons_")[2]
                if tag.text == "Active" and reason.endswith("_slowdown"):
                    throttled.append(f"GPU {number}: {reason}")
    return log.findtext("driver_version") or "unknown", faults, throttled


def _counts_uncorrected(tag: ElementTree.Element) -> bool:
    return "uncorrectable" in tag.tag and (tag.text or "").isdigit()


def _data_error(key: str, path: str) -> str:
    """Why a dataset cannot be used from here; sizes of the shards are left to the run, which asks for them once."""
    try:
        folder = place(path)
        if is_local(folder):
            manifest = read_manifest(folder)
            check_files(folder, manifest, local_sizes(folder, look_at_sizes=False))
        else:
            open_dataset(path).close()
    except UserError as error:
        return f"{key}: {error}"
    return ""


def _try_folder(asked: Asked, answer: Answer) -> None:
    marker = Path(asked.marker)
    try:
        answer.sees_marker = _sees(marker, asked.token)
        if not answer.sees_marker:
            return
        answer.written = _write_speed(marker.with_name(f"{marker.name}-{answer.rank}"))
        if asked.checkpoint_dir:
            there = Path(asked.checkpoint_dir)
            answer.free = shutil.disk_usage(there if there.exists() else marker.parent).free
    except OSError as error:
        answer.folder_error = f"cannot be written: {error.strerror}"


def _sees(marker: Path, token: str) -> bool:
    """Whether the file is there. Some network file systems take a moment."""
    deadline = time.monotonic() + _MARKER_SECONDS
    while True:
        try:
            return marker.read_text() == token
        except FileNotFoundError:
            if time.monotonic() > deadline or not marker.parent.exists():
                return False
        time.sleep(0.1)


def _write_speed(path: Path) -> float:
    """Bytes a second, from the first byte until all is on the disk."""
    chunk = os.urandom(_CHUNK)  # a file system may pack what repeats, but not within this
    start, written = time.monotonic(), 0
    try:
        with path.open("wb", buffering=0) as file:
            while written < _WRITE_BYTES and time.monotonic() - start < _WRITE_SECONDS:
                written += file.write(chunk)
            os.fsync(file.fileno())
        return written / (time.monotonic() - start)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
