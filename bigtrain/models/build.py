"""The model of a run, of any architecture.

A chunk is what Megatron-core's schedule runs: the layers of one pipeline stage, or of one of several that a stage has.
It is a `LanguageModule` of Megatron-core (so that tied embeddings, and where each parameter lies, are told by its
methods) with two methods of ours, of which either returns the hidden states [s, b, hidden_size] where the chunk is not
the model's last:

- `losses(batch)`: the loss of every target, float32, of the shape of `batch.loss_mask`;
- `predictions(batch)`: what the model says, batch first: [b, ...].

Where it continues text (gpt, t5) there is a third, `next_logits(batch)`: the logits after the last column,
[b, vocab_size], of rows whose keys and values :mod:`bigtrain.models.cached` keeps.

What it must say of its parameters, by attributes on them: `tensor_model_parallel` where they are split over the tensor
group, and `sequence_parallel` where each process of that group sees a part of the sequence, so that gradients add up.
"""

from collections.abc import Sequence

from torch import nn

from bigtrain.config import Config
from bigtrain.models.bert import Bert, build_bert
from bigtrain.models.gpt import GPT, build_gpt
from bigtrain.models.t5 import T5, build_t5, relative_tables

Chunk = GPT | Bert | T5


def build_model(config: Config) -> Sequence[Chunk]:
    """This process's part of the model, one chunk after the other; the process groups must exist.

    Weights are allocated on the process's device, in the type of `training.precision`, and hold nothing yet: see
    :mod:`bigtrain.models.initialize`.
    """
    if config.model.architecture == "gpt":
        return build_gpt(config)
    if config.model.architecture == "bert":
        return build_bert(config)
    return build_t5(config)


def tables_of_stages(chunks: Sequence[Chunk]) -> list[nn.Parameter | None]:
    """Parameters, all of one shape, that several stages of the pipeline may hold a copy of, in the same order on all of
    them; None for one that is not on this process. A copy whose stage is not its first is marked `is_stage_copy`."""
    t5 = [chunk for chunk in chunks if isinstance(chunk, T5)]
    return relative_tables(t5) if t5 else []
