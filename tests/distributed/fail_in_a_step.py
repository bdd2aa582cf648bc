"""A worker of two: on rank 1 the second micro-batch holds a token that the model does not know."""

import sys

import torch

from bigtrain.config import parse_config
from bigtrain.data.loader import Batch
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine

SEQUENCE = 16
config = parse_config(
    {
        "model": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        "data": {"train": "unused"},
        "parallel": {"zero_stage": int(sys.argv[1])},
        "training": {
            "output_dir": "unused",
            "steps": 1,
            "global_batch_size": 4,
            "sequence_length": SEQUENCE,
            "precision": "fp32",
        },
    }
)
layout = topology.start_processes(config)
tokens = torch.zeros(1, SEQUENCE, dtype=torch.int64)
good = Batch(tokens, tokens, torch.ones(1, SEQUENCE), torch.arange(SEQUENCE)[None])
bad = Batch(tokens + 1_000_000, tokens, good.loss_mask, good.position_ids)
Engine(config, layout).train_step([good, bad if layout.rank == 1 else good], 4 * SEQUENCE, 1e-3, 0)
