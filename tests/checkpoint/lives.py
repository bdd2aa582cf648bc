"""A worker: one run that dies again and again in the middle of saving, each life a fork of this process.

`lives.py CONFIG REPORT`; the report is [{point, killed, newest, left}] of every life, in order.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog
from bigtrain.config import Config, load_config
from bigtrain.training.pretrain import pretrain


def at(event: str, *words: str) -> Callable[[], None]:
    """Die before the system call that Python's audit event of that name announces, if all words are in its path."""

    def arm() -> None:
        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if name == event and all(word in str(arguments[0]) for word in words):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return arm


def half_written() -> None:
    """Let the kernel kill the process in the middle of its file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


POINTS = {  # in saving steps 2, 3, 4 ... of which each life makes one or more
    "before the folder": at("os.mkdir", ".step-00000002.writing"),
    "before the file": at("open", ".step-00000002.writing", ".distcp"),
    "within the file": half_written,
    "before the list of tensors": at("open", ".step-00000003.writing", ".metadata.tmp"),
    "before the list has its name": at("os.rename", ".step-00000003.writing", ".metadata.tmp"),
    "before the marker": at("open", ".step-00000004.writing", "complete.json"),
    "before the folder has its name": at("os.rename", ".step-00000004.writing"),
    "before `latest` is written": at("open", ".latest.writing"),
    "before `latest` has its name": at("os.rename", ".latest.writing"),
    "before an old one is set aside": at("os.rename", "step-00000004"),
    "before an old one is removed": at("shutil.rmtree", ".step-00000005.removed.writing"),
    "within the cleaning after that": at("os.remove", ".distcp"),
    "before an emptied folder is removed": at("os.rmdir", ".step-00000006.removed.writing"),
    "never": lambda: None,
}


def live(config: Config, arm: Callable[[], None]) -> int:
    """One life; its wait status."""
    child = os.fork()
    if child == 0:
        arm()
        os._exit(pretrain(config))
    return os.waitpid(child, 0)[1]


def main() -> None:
    config = load_config(sys.argv[1])
    folder = Path(config.training.output_dir) / "checkpoints"
    report = []
    for point, arm in POINTS.items():
        status = live(config, arm)
        newest = catalog.newest(folder)
        report.append(
            {
                "point": point,
                "killed": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                "newest": newest.state.step if newest else None,
                "left": sorted(path.name for path in folder.glob(".*")),
            }
        )
    Path(sys.argv[2]).write_text(json.dumps(report))


main()
