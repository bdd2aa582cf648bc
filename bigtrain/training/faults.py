"""How a process of a run fails: at once, and leaving word for the launcher. Nothing here needs torch.

After an uncaught exception Python winds down: it waits for threads, and process groups for peers that may never
answer. A worker that fails leaves without any of it, and its peers notice within milliseconds. Before, it puts down
what it met in a folder that the launcher reads when all have ended: so the first fault can be told last, below
everything that its peers said when they lost it.
"""

import faulthandler
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

from bigtrain.errors import EXIT_USER_ERROR, PeerError, UserError

FOLDER = "BIGTRAIN_FAULTS"
"""Environment variable that names the folder. Without a launcher of ours there is none."""

Kind = Literal["mistake", "fault", "lost peer", "hang"]
"""A user's mistake; any other error; one that says only that another process is gone; a step that took too long."""

_LOST = re.compile(r"gloo/transport|Connection (closed|reset) by peer|Broken pipe")


@dataclass(frozen=True)
class Fault:
    """What ended a process, in its own words."""

    rank: int
    time: float
    """Seconds since 1970; a fault is put down before any peer can notice it."""
    kind: Kind
    text: str
    """A traceback; of a mistake `error:` and the message, of a hang what took too long and where the process was."""


def leave(error: Exception) -> NoReturn:
    """End this process for an uncaught error: exit code 2 for a user's mistake, else 1.

    The traceback, or the message of a mistake, goes to this rank's log. Where there is a launcher it shows it, once;
    else it goes to stderr, a mistake from rank 0 alone.
    """
    mistake = isinstance(error, UserError)
    try:
        text = f"error: {error}\n" if mistake else "".join(traceback.format_exception(error))
        left = record(_kind(error), text)
        logger = logging.getLogger("bigtrain")
        is_first = os.environ["RANK"] == "0"
        if logger.handlers:
            logger.error("%s", text.rstrip())
        elif left and not is_first:
            sys.stderr.write(text)  # its log
        if not left and (is_first or not mistake):
            sys.stderr.write(text)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # whatever fails above, with memory or a disk exhausted
        os._exit(EXIT_USER_ERROR if mistake else 1)


def record(kind: Kind, text: str) -> bool:
    """Put down what ends this process, unless it is put down already. False: nobody would read it."""
    if FOLDER not in os.environ:
        return False
    rank = int(os.environ["RANK"])
    final = _path(rank, ".json")
    aside = final.with_suffix(f".{threading.get_ident()}")
    try:
        aside.write_text(json.dumps(asdict(Fault(rank, time.time(), kind, text))), encoding="utf-8")
        with suppress(FileExistsError):
            final.hardlink_to(aside)
    except OSError:
        return False
    return True


def read(folder: Path) -> dict[int, Fault]:
    """The faults that the processes of this node have put down, by rank."""
    found = [Fault(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("rank-*.json")]
    return {fault.rank: fault for fault in found}


def catch_crashes() -> None:
    """Let a crash in C (a segmentation fault, an abort) leave its stack for the launcher.

    On rank 0 alone, whose stderr is the terminal: the launcher has the other ranks' in their logs.
    """
    if FOLDER in os.environ and os.environ["RANK"] == "0":
        faulthandler.enable(_path(0, ".crash").open("w"))


def read_crash(folder: Path, rank: int) -> str:
    """The stack that a crash in C left; empty where there was none."""
    path = folder / f"rank-{rank:05d}.crash"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _path(rank: int, suffix: str) -> Path:
    return Path(os.environ[FOLDER], f"rank-{rank:05d}{suffix}")


def _kind(error: Exception) -> Kind:
    if isinstance(error, UserError):
        return "mistake"
    of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)  # NCCL's and the store's
    return "lost peer" if of_torch or isinstance(error, PeerError) or _LOST.search(str(error)) else "fault"
