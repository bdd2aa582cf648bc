"""One process of a world that runs legs: `python -m bigtrain.verify.worker FOLDER`, started by `legs.run_legs`."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike
from rich.console import Console

from bigtrain.checkpoint import catalog, store
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.config import Config, parse_config, validate
from bigtrain.data.order import permute
from bigtrain.data.packing import Rows
from bigtrain.data.samples import TokenSource
from bigtrain.data.tokenizer import Vocabulary
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine
from bigtrain.parallel.topology import Layout
from bigtrain.training import faults
from bigtrain.training.batches import BatchReader
from bigtrain.training.inputs import as_trained, first_source, open_train, sample_length
from bigtrain.training.schedule import learning_rate
from bigtrain.verify.digests import digest
from bigtrain.verify.legs import OUTCOMES, Digest, Leg, Outcome, read_legs
from bigtrain.verify.probe import probe

DRAWN_SAMPLES = 2**20


class DrawnSamples:
    """Random token sequences in the place of a dataset, in an order that is a pure function of the position."""

    def __init__(self, config: Config) -> None:
        self.sequence_length = sample_length(config)
        self._seed = config.training.seed
        self._vocab_size = config.model.vocab_size

    def sample_ids(self, positions: ArrayLike) -> np.ndarray:
        return permute(np.asarray(positions) % DRAWN_SAMPLES, DRAWN_SAMPLES, self._seed, 0)

    def read(self, positions: ArrayLike, with_begins: bool = False) -> Rows:
        """As `data.samples.Samples.read`; a token's probability falls with its number, as words' do, and token 0
        begins a document."""
        tokens = np.stack([self._draw(int(number)) for number in self.sample_ids(positions)])
        return Rows(tokens, [np.flatnonzero(row == 0).tolist() for row in tokens] if with_begins else None)

    def _draw(self, number: int) -> np.ndarray:
        uniform = np.random.default_rng((self._seed, number)).random(self.sequence_length + 1)
        return (self._vocab_size**uniform - 1).astype(np.int64) % self._vocab_size


class DrawnVocabulary:
    """Of drawn tokens: the first are special, and every other begins a word. As `data.tokenizer.Vocabulary`."""

    def __init__(self, config: Config) -> None:
        self.vocab_size = config.model.vocab_size
        names = ("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[R]", "[S]", "[X]", *(f"<extra_id_{n}>" for n in range(32)))
        self.special_tokens = {name: number for number, name in enumerate(names)}
        self.eos_id = self.special_tokens["[SEP]"]

    def word_starts(self) -> np.ndarray:
        return np.arange(self.vocab_size) % 2 == 0


class Witness:
    """Samples that remember what was read of them."""

    def __init__(self, samples: TokenSource) -> None:
        self._samples = samples
        self.sequence_length = samples.sequence_length
        self.seen: dict[int, int] = {}
        """Position to sample."""

    def sample_ids(self, positions: ArrayLike) -> np.ndarray:
        return self._samples.sample_ids(positions)

    def read(self, positions: ArrayLike, with_begins: bool = False) -> Rows:
        ids = self.sample_ids(positions)
        self.seen |= dict(zip(np.asarray(positions).tolist(), ids.tolist(), strict=True))
        return self._samples.read(positions, with_begins)


def run_leg(leg: Leg) -> Outcome:
    """Train a leg; all processes of the world call it."""
    began = time.monotonic()
    config = parse_config(leg.config)
    layout = topology.start_processes(config)
    validate(config, layout.world_size)
    samples, load_vocabulary = _source(config, leg.real_data)
    read = BatchReader(config, layout, as_trained(config, samples, load_vocabulary))
    engine = Engine(config, layout)
    if leg.load:
        store.load(catalog.read(Path(leg.load)), engine)
    outcome = Outcome(leg.name, [], [], [], [], {}, 0.0)
    if leg.probe:
        outcome = replace(outcome, moves=probe(engine, read(0)))
    if leg.load and leg.save:
        outcome.digests.update(_save(leg.save, "arrived", engine, leg.steps[0]))
    for step in range(*leg.steps):
        batches = read(step * config.training.global_batch_size)
        rate = learning_rate(config, step)
        result = engine.train_step(batches, read.targets(batches), rate, step)
        outcome.losses.append(float(result.loss))
        outcome.grad_norms.append(float(result.grad_norm))
        outcome.learning_rates.append(rate)
        outcome.sample_ids.append(_read_by_all(samples, layout))
    if leg.save:
        outcome.digests.update(_save(leg.save, "left", engine, leg.steps[1]))
    engine.close()
    return replace(outcome, seconds=time.monotonic() - began)


def _source(config: Config, real_data: bool) -> tuple[Witness, Callable[[], Vocabulary]]:
    """The samples, and what tells their vocabulary."""
    if not real_data:
        return Witness(DrawnSamples(config)), partial(DrawnVocabulary, config)
    train = open_train(config)
    return Witness(train), first_source(train).dataset.load_tokenizer


def _read_by_all(samples: Witness, layout: Layout) -> list[int]:
    """The samples that the whole world read since the last call; processes that share a sample must agree on it."""
    told: list[tuple[int, dict[int, int]]] = [(0, {})] * layout.world_size
    dist.all_gather_object(told, (layout.data_rank, samples.seen))
    samples.seen = {}
    by_data_rank = dict(told)
    assert all(by_data_rank[rank] == seen for rank, seen in told), "model-parallel peers read different samples"
    assert sum(map(len, by_data_rank.values())) == len({p for seen in by_data_rank.values() for p in seen})
    together = {position: sample for seen in by_data_rank.values() for position, sample in seen.items()}
    return [together[position] for position in sorted(together)]


def _save(folder: str, when: str, engine: Engine, step: int) -> dict[str, Digest]:
    """Write a checkpoint and read it back plainly, on rank 0; what was only written to be compared goes again."""
    training = engine.config.training
    position = step * training.global_batch_size
    state = TrainingState(step, position, position * training.sequence_length)
    path = store.save(Path(folder) / when, engine, state, {}, keep_last=0)
    found = {}
    with topology.together():
        if engine.layout.rank == 0:
            found[when] = digest(path)
            if when == "arrived":
                shutil.rmtree(path)
    return found


def main(folder: Path) -> None:
    """Run the legs that lie in `folder` and write each one's outcome there as soon as it is known."""
    legs = read_legs(folder)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for number, leg in enumerate(legs, 1):
        outcome = run_leg(leg)
        if topology.is_first_rank():
            with (folder / OUTCOMES).open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            console.print(f"{number}/{len(legs)}  {leg.name}  {outcome.seconds:.1f} s")
    topology.stop_processes()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        faults.leave(error)
