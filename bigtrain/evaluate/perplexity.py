"""How well a language model in a Hugging Face folder predicts held-out text."""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bigtrain.data.samples import Samples
from bigtrain.data.shards import TokenDataset, open_dataset
from bigtrain.errors import CheckpointError, DataError
from bigtrain.evaluate.scores import Metric, Scores, scored
from bigtrain.parallel import compat

LONGEST = 2048
"""Tokens of a sample where nothing else is said and the model takes more."""
_CHECKED = 8  # documents that both tokenizers must read alike


def score_text(
    folder: Path, data: Path, *, sequence_length: int | None = None, batch_size: int = 8, seed: int | None = 0
) -> Scores:
    """The loss of `transformers`' model, in float32, on all samples of a dataset: what a run with that
    `data.validation` and `training.sequence_length` calls its validation loss.

    Args:
        folder: As `bigtrain convert to-hf` writes it, or anybody else.
        data: A prepared dataset, of the model's tokenizer.
        sequence_length: Tokens of a sample; default: what the model takes, 2048 at most.
        batch_size: Samples read at a time.
        seed: Of the bootstrap over the samples; None: no intervals.

    Raises:
        CheckpointError: The folder cannot be read, or has no model of the next token.
        DataError: The dataset cannot be read, is too small, or was made with another tokenizer.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: transformers cannot make a language model of it ({error})") from None
    positions = getattr(config, "max_position_embeddings", sys.maxsize)
    length = sequence_length or min(positions, LONGEST)
    if length > positions:
        raise DataError(f"--sequence-length {length}: the model in {folder} takes {positions} tokens")
    dataset = open_dataset(data)
    _check_tokenizer(folder, dataset)
    losses = _losses(model.to(compat.device()).eval(), Samples(dataset, length, shuffle=False), batch_size)
    metric = _metric(losses, dataset.manifest.tokens / dataset.manifest.bytes)
    scores = scored(metric(np.arange(len(losses))), metric, len(losses), seed)
    notes = [
        f"{len(losses):,} samples of {length:,} tokens, each of which sees those of its sample alone",
        "intervals are over samples, as if these were independent of one another",
    ]
    return Scores("language_model", folder.resolve().name, len(losses), scores, {}, notes)


def _check_tokenizer(folder: Path, dataset: TokenDataset) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    own = dataset.load_tokenizer()
    for number in range(min(_CHECKED, dataset.documents)):
        text = own.decode(dataset.document(number).tokens[:-1].tolist())
        if tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] != own.encode(text):
            raise DataError(
                f"{dataset.path} was made with another tokenizer than the one in {folder}: they disagree on document "
                f"{number}, {text[:40]!r}..."
            )


@torch.no_grad()
def _losses(model: PreTrainedModel, samples: Samples, batch_size: int) -> np.ndarray:
    """The mean over the tokens of each sample, in nats: float64 [samples]."""
    found = []
    for first in range(0, len(samples), batch_size):
        rows = samples.read(np.arange(first, min(first + batch_size, len(samples))))
        tokens = torch.from_numpy(rows.tokens.astype(np.int64)).to(compat.device())
        logits = model(tokens[:, :-1]).logits.float()
        losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        found.append(losses.double().mean(1).cpu().numpy())
    return np.concatenate(found)


def _metric(losses: np.ndarray, tokens_per_byte: float) -> Metric:
    def metric(chosen: np.ndarray) -> dict[str, float]:
        loss = float(losses[chosen].mean())
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss / math.log(2) * tokens_per_byte,
        }

    return metric
