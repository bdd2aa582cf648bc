"""RoFormer: a BERT with rotary positions (arXiv:2104.09864), which turn neighbouring rows of a head together where ours
turn those of its two halves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bigtrain.config import ModelConfig
from bigtrain.config.tasks import OF_WHOLE_TEXTS
from bigtrain.convert.families.bert import COPIES, HEAD, KEYS, SHAPE, body
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import VALUE, Cut, key_rows, query_rows


def _neighbours(rows: Callable[[ModelConfig], np.ndarray]) -> Cut:
    """Of each head the first row of either half, then the second of either, and so on."""
    return Cut(lambda model: rows(model).reshape(-1, 2, model.head_size // 2).swapaxes(1, 2).ravel())


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"embedding_size": model.hidden_size, "rotary_value": False}


ROFORMER = Family(
    name="RoFormer",
    model_type="roformer",
    architecture="RoFormerForMaskedLM",
    weights={
        **body("roformer.", {"query": _neighbours(query_rows), "key": _neighbours(key_rows), "value": VALUE}),
        **HEAD,
    },
    shape={**SHAPE, "position_embedding": "rope"},
    keys=KEYS,
    prefix="roformer.",
    heads=("cls.predictions.",),
    write=_write,
    # Angles, which transformers computes anew, and tells; in bfloat16 they would be others.
    buffers=(r"roformer\.encoder\.embed_positions\.weight",),
    copies=COPIES,
    other_heads=frozenset(OF_WHOLE_TEXTS),  # it has no tanh
)
