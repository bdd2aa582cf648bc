"""A worker that starts a run and notes which files it opens: `starting.py FOLDER STEPS`.

The configuration is on standard input, as a launcher gives it. Every path under FOLDER that is opened or listed goes to
FOLDER/opened-RANK-STEPS.json.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from bigtrain.config import load_config
from bigtrain.training import faults
from bigtrain.training.pretrain import pretrain

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
opened: list[str] = []


def note(event: str, args: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and str(args[0]).startswith(f"{folder}/"):
        opened.append(str(args[0]).removeprefix(f"{folder}/"))


sys.addaudithook(note)
try:
    config = load_config("-")
    training = config.training.model_copy(update={"steps": steps})
    assert pretrain(config.model_copy(update={"training": training})) == 0
    (folder / f"opened-{os.environ['RANK']}-{steps}.json").write_text(json.dumps(opened))
except Exception as error:
    faults.leave(error)
