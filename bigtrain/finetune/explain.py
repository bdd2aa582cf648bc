"""Why a model answers as it does: what each token of a text adds to the answer, by integrated gradients
(arXiv:1703.01365), and the training examples that the model takes for the most alike."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor

from bigtrain.config import Config
from bigtrain.data.batch import Batch
from bigtrain.data.examples import Example
from bigtrain.data.masked import frame_tokens
from bigtrain.data.tokenizer import Span, Tokenizer, load_tokenizer
from bigtrain.finetune.batches import TaskBatches
from bigtrain.finetune.decode import softmax
from bigtrain.finetune.encode import Encoded, Item
from bigtrain.finetune.nearest import Neighbour, Neighbours, of_items
from bigtrain.finetune.predict import best_model
from bigtrain.parallel.engine import Engine, on_device

_OF_NUMBER = "the number"
"""What a regression says, in place of a class."""


@dataclass(frozen=True)
class Text:
    """A text that was read, and what its pieces add to the answer."""

    text: str
    pieces: list[tuple[int, int, float]]
    """First character, the one after the last, and what it adds; in order, none overlaps another."""
    read_to: int
    """Characters that the model has read: all, unless the text was cut."""


@dataclass(frozen=True)
class Explanation:
    """Why the model says what it says of an example."""

    id: str
    predicted: str
    """The class, or the number."""
    scores: dict[str, float]
    """Probability of each class; nothing of a regression."""
    explained: str
    """The class whose logit is taken apart; "the number" of a regression."""
    output: float
    """That logit, or number."""
    baseline: float
    """The same of the text with its words taken out."""
    gap: float
    """What all tokens add, minus the difference of the two: the error of the integral's sum."""
    texts: list[Text]
    """One, or two that are judged together."""
    nearest: list[Neighbour]

    def as_json(self) -> dict[str, Any]:
        """For a file or a page."""
        return asdict(self)


def explain(
    config: Config, run: Path, encoded: Encoded, *, label: str | None, steps: int, nearest: int
) -> Iterator[Explanation]:
    """Explain what the best checkpoint of a run says of each example; on this process alone.

    Args:
        config: The run's, of a classification or a regression.
        run: Its folder.
        encoded: The examples.
        label: The class to explain; None: the one that is predicted.
        steps: Points of the integral.
        nearest: Training examples to find; 0: none.

    Raises:
        UserError: The checkpoint or, where `nearest` are wanted, the training examples cannot be read.
    """
    with best_model(config, run) as engine:
        of = _Explainer(engine, config, load_tokenizer(run / "tokenizer"), label, steps)
        alike = Neighbours(engine, config, run) if nearest else None
        for item in encoded.items:
            one = replace(encoded, items=[item])
            found = alike.of(of_items(engine, config, one)[0], nearest) if alike else []
            yield of(one, found)


class _Explainer:
    """Explains one example after the other."""

    def __init__(self, engine: Engine, config: Config, tokenizer: Tokenizer, label: str | None, steps: int) -> None:
        self._engine, self._config, self._tokenizer = engine, config, tokenizer
        self._labels = config.finetune.labels or [_OF_NUMBER]
        self._target = None if label is None else self._labels.index(label)
        self._steps = steps

    def __call__(self, one: Encoded, nearest: list[Neighbour]) -> Explanation:
        """`one`: examples of which one is an item."""
        (item,) = one.items
        config, labels = self._config, self._labels
        (batch,) = TaskBatches(one, config, shuffle=False).batches(np.array([0]), 1)
        said = self._engine.predict([batch])[0][0].cpu().numpy()
        best = int(said.argmax())
        target = best if self._target is None else self._target
        batch = on_device(batch, self._engine.layout)
        baseline = self._without_words(batch.input_ids, len(item.ids), one.pad)
        at_once = config.training.micro_batch_size
        added, output, without = attributions(self._engine, batch, baseline, target, self._steps, at_once)
        of_classes = config.finetune.task == "classification"
        example = one.examples.examples[item.example]
        return Explanation(
            id=example.where,
            predicted=labels[best] if of_classes else f"{said[0]:.6g}",
            scores=dict(zip(labels, map(float, softmax(said)), strict=True)) if of_classes else {},
            explained=labels[target],
            output=output,
            baseline=without,
            gap=float(added.sum()) - (output - without),
            texts=self._texts(item, example, added[: len(item.ids)].tolist()),
            nearest=nearest,
        )

    def _without_words(self, ids: Tensor, length: int, pad: int) -> Tensor:
        """The tokens with a neutral one in the place of each that stands for text: BERT's mask, else what pads."""
        special, neutral = {self._tokenizer.eos_id}, pad
        if self._config.model.architecture == "bert":
            frame = frame_tokens(self._tokenizer.special_tokens)
            special, neutral = {*frame}, frame.mask
        is_text = [place < length and i not in special for place, i in enumerate(ids[0].tolist())]
        return torch.where(torch.tensor(is_text, device=ids.device), neutral, ids)

    def _texts(self, item: Item, example: Example, values: Sequence[float]) -> list[Text]:
        """The texts of an example, with the values of their tokens."""
        begin = int(self._config.model.architecture == "bert")
        parts = [(example.text, values[begin : item.first - 1])]
        if example.pair is not None:
            parts.append((example.pair, values[item.first : -1]))
        return [_text(text, self._tokenizer.encode_with_spans(text)[1], of_text) for text, of_text in parts]


def attributions(
    engine: Engine, batch: Batch, baseline: Tensor, target: int, steps: int, at_once: int
) -> tuple[Tensor, float, float]:
    """What each token of the one text in a batch adds to an output of the head.

    The integral of the gradient goes from the word embeddings of `baseline` [1, s] to those of the text; positions and
    segments stay.

    Returns:
        [s] float64 on the CPU; the output, and that of the baseline.
    """
    chunk: Any = engine.chunks[0].module
    chunk.eval()  # nothing is dropped

    def head(ids: Tensor) -> Tensor:
        rows = {
            field.name: value.expand(len(ids), *value.shape[1:])
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), Tensor)
        }
        return chunk.predictions(replace(batch, **{**rows, "input_ids": ids}))

    integrated = LayerIntegratedGradients(head, chunk.body.embedding.word_embeddings)
    added = integrated.attribute(
        batch.input_ids, baseline, target=target, n_steps=steps, internal_batch_size=at_once, method="gausslegendre"
    )
    with torch.no_grad():
        output, without = (float(head(ids)[0, target]) for ids in (batch.input_ids, baseline))
    return added[0].double().sum(-1).detach().cpu(), output, without


def _text(text: str, spans: Sequence[Span], values: Sequence[float]) -> Text:
    pieces: list[tuple[int, int, float]] = []
    for (begin, end), value in zip(spans, values, strict=False):
        if pieces and begin < pieces[-1][1]:  # several tokens stand for one character
            first, last, so_far = pieces[-1]
            pieces[-1] = (first, max(last, end), so_far + value)
        else:
            pieces.append((begin, end, value))
    return Text(text, pieces, len(text) if len(values) == len(spans) else pieces[-1][1] if pieces else 0)
