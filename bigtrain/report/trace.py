"""`bigtrain data trace`: which documents a step of a run read."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigtrain.config import Config, load_config
from bigtrain.data.mixture import Mixture
from bigtrain.data.samples import Samples
from bigtrain.errors import UserError
from bigtrain.training.inputs import open_train
from bigtrain.training.records import METRICS, read_rows


@dataclass(frozen=True)
class Trace:
    """A document, or a part of one, in a sample that was read."""

    step: int
    position: int
    """Of the sample in the run."""
    dataset: str
    """Name of the source in a mixture; else the dataset's folder."""
    source: str
    """The file that the document came from."""
    record: int
    """Its number there, from 0."""
    first_token: int
    """Of the part, in the document."""
    tokens: int
    """How many of it are in the sample."""
    document_tokens: int
    """How many the document has, the end-of-document token included."""
    text: str
    """Of the part."""


def trace(run: Path, first_step: int, last_step: int | None = None) -> Iterator[Trace]:
    """What the steps `first_step` to `last_step` (default: that one step) of a run read, in the order of its samples.

    Steps count from 1, as in `metrics.jsonl`.

    Raises:
        UserError: No such run or step; or its data is not there any more, or has changed.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run's folder: it has no config.yaml")
    config = load_config(run / "config.yaml")
    begins = _Positions(run, config)
    steps = range(first_step, (first_step if last_step is None else last_step) + 1)
    train = open_train(config)
    for step in steps:
        for position in range(begins.before(step), begins.before(step + 1)):
            name, samples, within = _locate(train, position)
            for document in _documents(samples, within):
                yield Trace(step, position, name, *document)


class _Positions:
    """From a step to the position of its first sample, by the tokens that the records tell: the batch may have
    changed at a resume."""

    def __init__(self, run: Path, config: Config) -> None:
        self._tokens = {0: 0} | {row["step"]: row["tokens"] for row in read_rows(run / METRICS) if "tokens" in row}
        self._steps = sorted(self._tokens)
        self._run, self._length = run, config.training.sequence_length

    def before(self, step: int) -> int:
        """Samples read before a step."""
        done = step - 1
        if not 0 <= done <= self._steps[-1]:
            raise UserError(f"{self._run / METRICS} ends with step {self._steps[-1]}; there is no step {done} in it")
        after = bisect_left(self._steps, done)
        if self._steps[after] == done:
            return self._tokens[done] // self._length
        low, high = self._steps[after - 1], self._steps[after]
        each, rest = divmod(self._tokens[high] - self._tokens[low], (high - low) * self._length)
        if rest:
            raise UserError(
                f"{self._run / METRICS}: training.global_batch_size was changed between the steps {low} and {high}, of "
                "which none is logged; ask for another step"
            )
        return self._tokens[low] // self._length + each * (done - low)


def _locate(train: Samples | Mixture, position: int) -> tuple[str, Samples, int]:
    if isinstance(train, Samples):
        return str(train.dataset.path), train, position
    (source,), (within,) = train.locate([position])
    name = train.names[source]
    return name, train.sources[name], int(within)


def _documents(samples: Samples, position: int) -> Iterator[tuple[str, int, int, int, int, str]]:
    """(source, record, first token, tokens, tokens of the document, text) of each document in a sample."""
    dataset, cut = samples.dataset, samples.cut
    tokenizer = dataset.load_tokenizer()
    for begin, length in cut.extent(int(samples.sample_ids([position])[0])):
        end = begin + length
        while begin < end:
            index = dataset.document_at(begin)
            document = dataset.document(index)
            start, whole = dataset.document_span(index)
            count = min(end, start + whole) - begin
            part = document.tokens[begin - start :][:count]
            text = tokenizer.decode([token for token in part.tolist() if token != tokenizer.eos_id])
            yield document.source, document.position, begin - start, count, whole, text
            begin += count
