"""A worker of four that share sequences: `FOLDER` holds `cases.json`; each rank writes `RANK.pt`.

There are three kinds of cases: the core of attention alone on random tensors, the logits of a whole model before
and after the last tokens were changed, and training steps.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType

from bigtrain.config import load_config, validate
from bigtrain.data.loader import CausalBatch
from bigtrain.models.attention import CoreAttention
from bigtrain.models.context import part_of_sequence
from bigtrain.models.gpt import transformer_config
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine

folder = Path(sys.argv[1])


def attention(case: dict[str, Any]) -> dict[str, Any]:
    """Output and gradients of this rank's part, for several shapes under one layout."""
    layout = topology.start_processes(load_config(folder / "run.yaml", case["words"]))
    found = {}
    for name, tensors in torch.load(folder / case["tensors"]).items():
        heads, kv_heads, head_dim = tensors[0].shape[2], tensors[1].shape[2], tensors[0].shape[3]
        words = [
            f"model.num_attention_heads={heads}",
            f"model.num_key_value_heads={kv_heads}",
            f"model.head_dim={head_dim}",
        ]
        config = transformer_config(load_config(folder / "run.yaml", [*case["words"], *words]))
        groups = ProcessGroupCollection.use_mpu_process_groups(["cp"])
        core = CoreAttention(
            config, 1, AttnMaskType.causal, "self", cp_comm_type=config.cp_comm_type, pg_collection=groups
        )
        query, key, value, grad = (
            part_of_sequence(x, layout.context_rank, layout.context, dim=0).requires_grad_() for x in tensors
        )
        out = core(query, key, value)
        out.backward(grad.detach().flatten(2))
        results = [out.detach(), query.grad, key.grad, value.grad]
        found[name] = {"method": config.cp_comm_type, "parts": results}
    return {"rank": layout.context_rank, "size": layout.context, "found": found}


def logits(case: dict[str, Any]) -> dict[str, Any]:
    """This rank's part of the logits for each of several texts."""
    config = load_config(folder / "run.yaml", case["words"])
    layout = topology.start_processes(config)
    validate(config, layout.world_size)
    engine = Engine(config, layout)
    engine.zero.eval()
    positions = torch.arange(config.training.sequence_length)[None]
    found = []
    for tokens in torch.load(folder / case["tensors"]):
        here = [part_of_sequence(x, layout.context_rank, layout.context) for x in (tokens, positions)]
        with torch.no_grad():
            found.append(engine.chunks[0].module(*here, None))
    engine.close()
    return {"rank": layout.context_rank, "size": layout.context, "logits": found}


def steps(case: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(loss before, loss of the step, gradient norm) of two steps on whole sequences."""
    config = load_config(folder / "run.yaml", case["words"])
    layout = topology.start_processes(config)
    validate(config, layout.world_size)
    engine = Engine(config, layout)
    batches = [CausalBatch(**fields) for fields in torch.load(folder / case["tensors"])]
    targets, found = float(sum(batch.loss_mask.sum() for batch in batches)), []
    for step in range(2):
        before = engine.evaluate(batches)
        result = engine.train_step(batches, targets, 1e-3, step)
        found.append((float(before), float(result.loss), float(result.grad_norm)))
    engine.close()
    return found


kinds = {"attention": attention, "logits": logits, "steps": steps}
results = {name: kinds[case["kind"]](case) for name, case in json.loads((folder / "cases.json").read_text()).items()}
rank = torch.distributed.get_rank()
torch.save(results, folder / f"{rank}.pt")
topology.stop_processes()
