"""A worker of `task_cases`: writes texts. A case has "searches"; found are [[tokens of each text], ...] for each."""

from typing import Any

import task_cases

from bigtrain.config import Config
from bigtrain.evaluate.beams import Beams
from bigtrain.finetune.inputs import TaskInputs
from bigtrain.finetune.write import write
from bigtrain.parallel.engine import Engine


def tokens(case: dict[str, Any], config: Config, inputs: TaskInputs, engine: Engine) -> list[list[list[int]]]:
    end = inputs.tokenizer.eos_id
    made = []
    for how in case["searches"]:
        found = write(engine, config, inputs.train, end, Beams(**how)) or []
        made.append([[*text.ids, *[end] * text.ended] for text in found])
    return made


task_cases.run(tokens)
