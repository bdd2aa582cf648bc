"""What a model is told of its mistakes."""

import torch.nn.functional as F
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor


def token_losses(labels: Tensor, logits: Tensor, tensor_parallel: int) -> Tensor:
    """Cross entropy of each token, in float32, that does not pay for a split vocabulary where there is none.

    Args:
        labels: [b, s] int64
        logits: [s, b, vocab_size / tensor_parallel]
        tensor_parallel: Processes that share the vocabulary.

    Returns:
        [b, s]
    """
    labels = labels.transpose(0, 1)
    if tensor_parallel > 1:
        losses = vocab_parallel_cross_entropy(logits.float(), labels.contiguous())
    else:
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return losses.transpose(0, 1)
