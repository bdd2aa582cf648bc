"""What a checkpoint's model and the model in a Hugging Face folder say of the same texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import ModelConfig
from bigtrain.config.tasks import OF_WHOLE_TEXTS, FinetuneConfig
from bigtrain.convert.classes import LANGUAGE_MODELS, class_of
from bigtrain.convert.own_model import own_model, own_shapes
from bigtrain.convert.source import model_config
from bigtrain.convert.texts import Reading
from bigtrain.convert.weights import Weights
from bigtrain.data.batch import Batch
from bigtrain.data.encoder import EncoderBatch
from bigtrain.data.framing import Framing
from bigtrain.data.loader import CausalBatch
from bigtrain.data.pair_batches import PairBatch
from bigtrain.data.task_batches import CausalTask, EncoderTask
from bigtrain.parallel import compat

Sample = Mapping[str, Tensor]
"""What a model reads at once, int64 [1, s] each, by the names that `transformers` has for it."""
_JUDGED = 32
"""Tokens of a text of which one thing is said."""


def samples_of(
    model: ModelConfig,
    folder: Path,
    reading: Reading,
    framing: Framing | None = None,
    task: FinetuneConfig | None = None,
) -> list[Sample]:
    """A text as models read it: with `framing` around it, and of a T5 in pairs, where a decoder is to say the text that
    follows."""
    ids = list(reading.sequences)
    if model.architecture == "t5":
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        start = torch.full((1, 1), config.decoder_start_token_id or 0)
        said = [torch.cat([start, following[:, :-1]], dim=1) for following in [*ids[1:], ids[0]]]
        return [{"input_ids": a, "decoder_input_ids": b} for a, b in zip(ids, said, strict=True)]
    if framing is None:
        return [{"input_ids": sequence} for sequence in ids]
    if task is not None and task.task in OF_WHOLE_TEXTS:
        ids = [part for sequence in ids for part in sequence.split(_JUDGED, dim=1)]
    room = framing.room(model.longest_sequence, texts=1)
    return [{"input_ids": torch.tensor([framing.around(sequence[0, :room].tolist())[0]])} for sequence in ids]


@torch.no_grad()
def own_logits(
    checkpoint: Checkpoint, dtype: torch.dtype, samples: Sequence[Sample], rows: int, task: FinetuneConfig | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Of the trained model, and of the same with its weights rounded to the saved type; both compute in float32.

    Where a model has no head, of its embedding used as one.

    Args:
        checkpoint: Where the weights lie.
        dtype: The saved type.
        samples: What is read.
        rows: Of the vocabulary; what the model has beyond is left out.
        task: What the model was fine-tuned for, if that gave it another head.

    Returns:
        float32 [n, outputs] of each sample; see :func:`_as_rows`.
    """
    shape = model_config(checkpoint)
    headless = task is None and is_headless(checkpoint)

    def read(sample: Sample) -> Tensor:
        batch = _batch({name: ids.to(compat.device()) for name, ids in sample.items()}, shape, task)
        if headless:
            return (model.hidden_states(batch)[:, 0] @ model.embedding.word_embeddings.weight[:rows].T).cpu()
        said = model.predictions(batch)
        return _as_rows(said, task).cpu() if task is not None else said[0, :, :rows].cpu()

    lacks = set() if task is not None else own_shapes(shape).keys() - Weights(checkpoint).shapes.keys()
    with own_model(checkpoint, but=lacks, task=task) as model:
        trained = [read(sample) for sample in samples]
        if dtype == torch.float32:
            return trained, trained
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        return trained, [read(sample) for sample in samples]


def is_headless(checkpoint: Checkpoint) -> bool:
    """Whether a BERT came without what predicts tokens."""
    return model_config(checkpoint).architecture == "bert" and "output_layer.bias" not in Weights(checkpoint).shapes


def _batch(sample: Sample, model: ModelConfig, task: FinetuneConfig | None) -> Batch:
    """Text to be read; nothing is a target."""
    ids = sample["input_ids"]
    weights, length = torch.zeros(ids.shape, device=ids.device), ids.shape[1]
    if model.architecture == "t5":
        decoded = sample["decoder_input_ids"]
        return PairBatch(ids, decoded, torch.zeros(decoded.shape), decoded)
    positions, types = torch.arange(length, device=ids.device)[None], torch.zeros_like(ids)
    if task is None:
        if model.architecture == "bert":
            return EncoderBatch(ids, ids, weights, types, None)
        return CausalBatch(ids, ids, weights, positions)
    lengths = torch.tensor([length], device=ids.device)
    if model.architecture == "bert":
        return EncoderTask(ids, ids, weights, types, None, speaks=torch.zeros_like(lengths), lengths=lengths)
    return CausalTask(ids, ids, weights, positions, speaks=lengths - 1, lengths=lengths)


def _as_rows(said: Tensor, task: FinetuneConfig) -> Tensor:
    """[n, outputs] out of a head's outputs for one text; of an answer's two ends each is one of the tokens."""
    if task.task == "question_answering":
        return said[0].T
    return said if task.task in OF_WHOLE_TEXTS else said[0]


def hf_class(config: PretrainedConfig, checkpoint: Checkpoint, task: FinetuneConfig | None) -> Any:
    """The class of `transformers` that reads a folder as the checkpoint's model."""
    if task is not None:
        return class_of(config)
    return AutoModel if is_headless(checkpoint) else LANGUAGE_MODELS[model_config(checkpoint).architecture]


@torch.no_grad()
def hf_logits(kind: Any, folder: Path, dtype: torch.dtype, samples: Sequence[Sample]) -> tuple[list[Tensor], bool]:
    """What the model in a folder says, as :func:`own_logits`, and whether its output layer is its embedding.

    Args:
        kind: As `hf_class` gives it.
        folder: The Hugging Face folder.
        dtype: In which the model computes.
        samples: What is read.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    capped = getattr(config, "attn_logit_softcapping", None) is not None  # of which but one of its ways knows
    way = "eager" if capped else None
    model = kind.from_pretrained(folder, dtype=dtype, attn_implementation=way, local_files_only=True)
    model = model.to(compat.device()).eval()
    embedding = model.get_input_embeddings().weight
    found = []
    for sample in samples:
        said = model(**{name: ids.to(compat.device()) for name, ids in sample.items()})
        if kind is AutoModel:
            rows = said.last_hidden_state[0] @ embedding.T
        elif hasattr(said, "start_logits"):
            rows = torch.cat([said.start_logits, said.end_logits])
        else:
            rows = said.logits[0] if said.logits.ndim == 3 else said.logits
        found.append(rows.float().cpu())
    output = model.get_output_embeddings()
    return found, kind is AutoModel or (output is not None and output.weight is embedding)
