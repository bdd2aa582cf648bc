"""The training examples that a fine-tuned model takes for the most alike: what its head reads of them lies in the
direction of what it reads of a text."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtrain.checkpoint.catalog import MARKER
from bigtrain.config import Config
from bigtrain.errors import DataError, UserError
from bigtrain.finetune.batches import TaskBatches
from bigtrain.finetune.encode import Encoded
from bigtrain.finetune.inputs import find_best, fingerprint, read_both
from bigtrain.finetune.saved import encoder_of
from bigtrain.parallel.engine import Engine

_FOLDER = "evaluation"
_LEFT_OUT = "with --nearest 0 no training examples are looked for"


@dataclass(frozen=True)
class Neighbour:
    """A training example."""

    id: str
    """Its place in the file."""
    similarity: float
    """The cosine of the angle between both representations: 1 where they have one direction."""
    label: str
    """Its class, or its number."""
    text: str
    pair: str | None


class Neighbours:
    """The training examples of a run."""

    def __init__(self, engine: Engine, config: Config, run: Path) -> None:
        """Read them; what the model makes of them is computed once, and kept in the run's folder.

        Raises:
            DataError: They are not where the configuration says, or cannot be read.
            UserError: The run's folder cannot be written to.
        """
        try:
            train, _ = read_both(config)
        except DataError as error:
            raise DataError(f"{error}; {_LEFT_OUT}") from None
        self._encoded = encoder_of(config, run).encode(train)
        path = run / _FOLDER / f"representations-{_digest(config, run)}.npy"
        if path.is_file():
            self._directions = np.load(path)
            return
        self._directions = of_items(engine, config, self._encoded)
        try:
            path.parent.mkdir(exist_ok=True)
            for outdated in path.parent.glob("representations-*.npy"):
                outdated.unlink()
            unfinished = path.with_suffix(".writing.npy")
            np.save(unfinished, self._directions)
            unfinished.rename(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; {_LEFT_OUT}") from None

    def of(self, direction: np.ndarray, count: int) -> list[Neighbour]:
        """Those nearest to a text of this `direction` [hidden_size], the nearest first."""
        similarities = self._directions @ direction
        found = []
        for number in np.argsort(-similarities, kind="stable")[:count]:
            example = self._encoded.examples.examples[self._encoded.items[number].example]
            label = example.label if example.label is not None else f"{example.number:g}"
            found.append(Neighbour(example.where, float(similarities[number]), label, example.text, example.pair))
        return found


def of_items(engine: Engine, config: Config, encoded: Encoded) -> np.ndarray:
    """What the head reads of each item, of length 1: float32 [items, hidden_size]; on one process."""
    source, size = TaskBatches(encoded, config, shuffle=False), config.training.micro_batch_size
    order = np.argsort([len(item.ids) for item in encoded.items], kind="stable")
    found = np.zeros((len(order), config.model.hidden_size), dtype=np.float32)
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        for batch in source.batches(chosen, size):
            (said,) = engine.predict([batch], "representations")
            found[chosen] = said.float().cpu().numpy()
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _digest(config: Config, run: Path) -> str:
    """Of all that decides them: the checkpoint's marker, which has a checksum of its tensors, and the examples."""
    given = [fingerprint(find_best(run).path / MARKER), fingerprint(Path(config.finetune.train or ""))]
    given += [str(config.training.sequence_length), config.finetune.columns.model_dump_json()]
    given += [str(config.finetune.validation_fraction if config.finetune.validation is None else 0)]
    return hashlib.sha256("\n".join(given).encode()).hexdigest()[:16]
