"""A model's outputs for the examples of a file, and what they say."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.checkpoint import store
from bigtrain.checkpoint.find import find_best
from bigtrain.config import Config
from bigtrain.data.batch import micro_batches
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import UserError
from bigtrain.evaluate.beams import Beams
from bigtrain.evaluate.predictions import write_predictions
from bigtrain.finetune.batches import TaskBatches
from bigtrain.finetune.decode import decode
from bigtrain.finetune.encode import Encoded
from bigtrain.finetune.saved import open_examples
from bigtrain.finetune.write import LIKELIEST_TOKEN, write_texts
from bigtrain.models.heads import build_for_task, task_losses
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine


@dataclass(frozen=True)
class Outputs:
    """What the head gave, on rank 0."""

    loss: float
    """Mean over the targets, in the unit of the task's loss; NaN without labels."""
    of_items: list[np.ndarray]
    """float32 [outputs], or [s, outputs]."""


def outputs(
    engine: Engine, config: Config, encoded: Encoded, before_batch: Callable[[], None] = lambda: None
) -> Outputs | None:
    """The head's outputs for all items; every rank calls it, rank 0 gets them, the others None."""
    source = TaskBatches(encoded, config, shuffle=False)
    layout, training, task = engine.layout, config.training, config.finetune.task
    assert task is not None, "the configuration was validated"
    assert task != "sequence_to_sequence", "a text is generated"
    speaks = layout.is_last_stage and layout.tensor_rank == 0
    found: list[tuple[int, np.ndarray]] = []
    total = weight = 0.0
    for first in range(0, len(encoded), training.global_batch_size):
        before_batch()
        batches = micro_batches(
            source,
            first,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            data_parallel_rank=layout.data_rank,
            data_parallel_size=layout.data,
        )
        said = engine.predict(batches)
        for number, (batch, given) in enumerate(zip(batches, said, strict=False) if speaks else ()):
            here = given.float().cpu()
            losses = task_losses(task, here, batch.labels)
            total += float((losses.double() * batch.loss_mask).sum())
            weight += float(batch.loss_mask.double().sum())
            position = first + (number * layout.data + layout.data_rank) * training.micro_batch_size
            found += [(position + row, values) for row, values in enumerate(here.numpy())]
    gathered = topology.gather((found, total, weight))
    if gathered is None:
        return None
    rows = dict(row for rows, _, _ in gathered for row in rows)
    weights = sum(part[2] for part in gathered)
    loss = sum(part[1] for part in gathered) / weights if weights else float("nan")
    return Outputs(loss, [rows[number] for number in range(len(encoded))])


def predict_file(config: Config, run: Path, data: Path, output: Path, how: Beams = LIKELIEST_TOKEN) -> None:
    """Write the predictions for all examples of `data` to `output`; every process of the world calls it.

    `how` is for texts, which are looked for so.

    Raises:
        UserError: On every rank, before anything is computed.
    """
    encoded = open_examples(config, data, run)
    with best_model(config, run) as engine:
        if config.finetune.task == "sequence_to_sequence":
            texts = write_texts(engine, config, encoded, load_tokenizer(run / "tokenizer"), how)
            if texts is not None:
                write_predictions(output, iter(made_rows(encoded, texts)))
        elif found := outputs(engine, config, encoded):
            write_predictions(output, iter(decode(config, encoded, found.of_items, config.finetune.labels or ())))


@contextmanager
def best_model(config: Config, run: Path) -> Iterator[Engine]:
    """A run's model with its best weights; the world begins and ends with the block, on every process of it.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
    """
    layout = topology.start_processes(config)
    try:
        engine = Engine(config, layout, partial(build_for_task, labels=len(config.finetune.labels or ())))
        store.load_weights(find_best(run), engine)
        yield engine
    except UserError:  # which every rank raises: nobody is waiting
        topology.stop_processes()
        raise
    topology.stop_processes()


def made_rows(encoded: Encoded, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of predictions of texts."""
    rows = []
    for item, text in zip(encoded.items, texts, strict=True):
        example = encoded.examples.examples[item.example]
        target = {} if example.pair is None else {"target": example.pair}
        rows.append({"id": example.where, "source": example.text, "predicted": text, **target})
    return rows
