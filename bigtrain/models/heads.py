"""A task's head in place of the output over the vocabulary: dropout and a linear layer, of a BERT's first token or the
mean of all with a layer before (its "pooler", arXiv:1810.04805).

What lies below is the model as it is, whatever its architecture; its last chunk gives the hidden states to the head.
The head is whole on every process of the tensor group, which all compute the same.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from bigtrain.config import Config
from bigtrain.config.tasks import OF_WHOLE_TEXTS
from bigtrain.data.batch import Batch
from bigtrain.models.bert import Pooler
from bigtrain.models.build import Chunk, build_model

Kind = Literal["classification", "regression", "tagging", "question_answering"]
HEAD = "head."
"""How the names of its weights begin."""
POOLER = "pooler."
"""Those of BERT's layer between the first token and the head, which pretraining with a sentence objective has, too."""


def build_for_task(config: Config, labels: int) -> Sequence[Any]:
    """This process's part of the model for `finetune.task`; see :func:`bigtrain.models.build.build_model`.

    Args:
        config: The run's.
        labels: How many classes or tags there are.
    """
    task = config.finetune.task
    if task == "sequence_to_sequence":
        return build_model(config)
    # An output layer that is tied is not told from the embedding; one of its own is left out again.
    untied = config.model.model_copy(update={"tie_word_embeddings": False})
    chunks = build_model(config.model_copy(update={"model": untied}))
    outputs = {"regression": 1, "question_answering": 2}.get(task or "", labels)
    return [TaskChunk(chunk, config, outputs) for chunk in chunks]


class TaskChunk(nn.Module):
    """A chunk of the model; the last one with the head. See :mod:`bigtrain.models.build`."""

    share_embeddings_and_output_weights = False

    def __init__(self, chunk: Chunk, config: Config, outputs: int) -> None:
        super().__init__()
        self.kind: Any = config.finetune.task
        self.takes_mean = config.finetune.classifier_pooling == "mean"
        self.config, self.vp_stage, self.model_type = chunk.config, chunk.vp_stage, chunk.model_type
        self.pre_process, self.post_process = chunk.pre_process, chunk.post_process
        self.head: nn.Linear | None = None
        self.pooler: Pooler | None = None
        if chunk.post_process:
            chunk.post_process = False  # it gives hidden states now, after its final norm
            for name in ("output_layer", "lm_head", "binary_head", "pooler"):
                if hasattr(chunk, name):
                    setattr(chunk, name, None)
            of_text = self.kind in OF_WHOLE_TEXTS
            pools = of_text and config.model.architecture == "bert"
            self.pooler = Pooler(chunk.config) if pools else None
            # As in `transformers`, where the head of a causal model's last token has no bias.
            self.head = nn.Linear(config.model.hidden_size, outputs, bias=pools or not of_text)
            self.to(next(chunk.parameters()).device, chunk.config.params_dtype)
        self.dropout = nn.Dropout(config.model.hidden_dropout)
        self.body = chunk

    def set_input_tensor(self, tensor: Tensor) -> None:
        """What the stage before gives."""
        self.body.set_input_tensor(tensor)

    def losses(self, batch: Batch) -> Tensor:
        """Those of the batch's targets, float32 of the shape of `loss_mask`; hidden states before the last stage."""
        said = self.predictions(batch)
        return said if self.head is None else task_losses(self.kind, said, batch.labels)

    def predictions(self, batch: Batch) -> Tensor:
        """The head's outputs, float32: [b, outputs] of whole texts, else [b, s, outputs]."""
        hidden = self.representations(batch)
        if self.head is None:
            return hidden
        said = self.head(self.dropout(hidden)).float()
        if self.kind == "question_answering":  # no answer lies in padding
            place = torch.arange(said.shape[1], device=said.device)
            said = said.masked_fill((place >= batch.lengths[:, None])[..., None], float("-inf"))  # type: ignore[attr-defined]
        return said

    def representations(self, batch: Batch) -> Tensor:
        """What the head reads: [b, hidden_size] of whole texts, else [b, s, hidden_size]; hidden states before the last
        stage."""
        hidden: Tensor = self.body.losses(batch)  # type: ignore[arg-type]  # of its architecture
        if self.head is None:
            return hidden
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        hidden = hidden.transpose(0, 1)
        if self.takes_mean:
            hidden = _mean(hidden, batch.lengths)  # type: ignore[attr-defined]
        elif self.kind in OF_WHOLE_TEXTS:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), batch.speaks]  # type: ignore[attr-defined]
        return hidden if self.pooler is None else self.pooler(hidden)

    def sharded_state_dict(self) -> dict[str, Any]:
        """Where each parameter lies in the whole model."""
        found: dict[str, Any] = self.body.sharded_state_dict()
        if self.head is not None:
            found |= make_sharded_tensors_for_checkpoint(self.head.state_dict(), HEAD)
        if self.pooler is not None:
            found |= make_sharded_tensors_for_checkpoint(self.pooler.state_dict(), POOLER)
        return found


def _mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """[b, s, hidden_size], of which so many tokens are text -> [b, hidden_size]."""
    is_text = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden.float() * is_text[..., None]).sum(1).div(lengths[:, None]).to(hidden.dtype)


def task_losses(kind: Kind, said: Tensor, labels: Tensor) -> Tensor:
    """The loss of each target, float32: squared error of a regression, else cross entropy.

    Args:
        kind: The task.
        said: The head's outputs.
        labels: [b, 1]: classes, or the numbers of a regression; [b, s]: tags; [b, 2]: the first and the last token of
            an answer.

    Returns:
        Of the shape of `labels`.
    """
    if kind == "regression":
        return (said - labels).square()
    if kind == "classification":
        return F.cross_entropy(said, labels.flatten(), reduction="none").unsqueeze(1)
    if kind == "tagging":
        return F.cross_entropy(said.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    ends = said.transpose(1, 2).flatten(0, 1)  # [2 b, s]
    return F.cross_entropy(ends, labels.flatten(), reduction="none").view_as(labels)
