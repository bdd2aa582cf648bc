"""A worker of two that fails on one rank: `step ZERO_STAGE` on rank 1, on a token that the model does not know;
`save FOLDER` on rank 0, in saving into what is no folder; `background FOLDER` on rank 1, in writing beside training,
where the folder of the checkpoints is not mounted."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from bigtrain.checkpoint import store
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.checkpoint.saver import Saver
from bigtrain.config import parse_config
from bigtrain.data.loader import Batch
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine

SEQUENCE = 16
where, argument = sys.argv[1:]
config = parse_config(
    {
        "model": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        "data": {"train": "unused"},
        "parallel": {"zero_stage": int(argument) if where == "step" else 1},
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
engine = Engine(config, layout)
spoilt = where == "step" and layout.rank == 1
engine.train_step([good, bad if spoilt else good], 4 * SEQUENCE, 1e-3, 0)
state = TrainingState(step=1, position=4, tokens=64)
if where == "save":
    store.save(Path(argument), engine, state, {}, keep_last=0)
if where == "background":
    store.save(Path(argument), engine, state, {}, keep_last=0)
    saver = Saver(Path(argument) if layout.rank == 0 else Path("/nowhere"), engine, {}, keep_last=0)
    saver.save(replace(state, step=2))
    for step in range(1000):
        engine.train_step([good, good], 4 * SEQUENCE, 1e-3, step)
        saver.poll()
