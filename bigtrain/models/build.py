"""The model of a run, of any architecture.

A chunk is what Megatron-core's schedule runs: the layers of one pipeline stage, or of one of several that a stage has.
It is a `LanguageModule` of Megatron-core (so that tied embeddings, and where each parameter lies, are told by its
methods) with two methods of ours, of which either returns the hidden states [s, b, hidden_size] where the chunk is not
the model's last:

- `losses(batch)`: the loss of every target, float32, of the shape of `batch.loss_mask`;
- `predictions(batch)`: what the model says, batch first: [b, ...].

What it must say of its parameters, by attributes on them: `tensor_model_parallel` where they are split over the tensor
group, and `sequence_parallel` where each process of that group sees a part of the sequence, so that gradients add up.
"""

from collections.abc import Sequence

from bigtrain.config import Config
from bigtrain.errors import ConfigError
from bigtrain.models.bert import Bert, build_bert
from bigtrain.models.gpt import GPT, build_gpt

Chunk = GPT | Bert


def build_model(config: Config) -> Sequence[Chunk]:
    """This process's part of the model, one chunk after the other; the process groups must exist.

    Weights are allocated on the process's device, in the type of `training.precision`, and hold nothing yet: see
    :mod:`bigtrain.models.initialize`.
    """
    if config.model.architecture == "gpt":
        return build_gpt(config)
    if config.model.architecture == "bert":
        return build_bert(config)
    raise ConfigError(f"model.architecture={config.model.architecture} cannot be trained yet")
