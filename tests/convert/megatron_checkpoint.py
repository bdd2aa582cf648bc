"""Models of megatron-core's own parts, as Megatron-LM builds, splits and saves them.

`megatron_checkpoint.py RANK FOLDER` in four processes. Each case lies in a folder of its name, with the logits that
Megatron's model gives.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from bigtrain.parallel import compat


class OnCpu(TorchFunctionMode):
    """What megatron-core's optimizer makes on a GPU is made on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        found = func(*args, **({**options, "device": "cpu"} if options.get("device") == "cuda" else options))
        return found.replace("torch.", "torch.cuda.") if func is torch.Tensor.type and found in _OPTIMIZED else found


_OPTIMIZED = ("torch.FloatTensor",)
OPTIMIZER = {"distrib_optim_sharding_type": "dp_reshardable"}
IDS = torch.arange(60).reshape(2, 30) * 7 % 448
WORLD = 4
CASES: dict[str, dict[str, Any]] = {
    "dense": {"tensor": 2, "pipeline": 2, "tied": False, "experts": None},
    "experts": {"tensor": 1, "pipeline": 2, "tied": True, "experts": 4},
}
"""The second has its experts on two processes each stage."""


def main(rank: int, folder: Path) -> None:
    compat.install()
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=WORLD)
    with OnCpu():
        for name, case in CASES.items():
            make(folder / name, **case)
    dist.barrier()
    dist.destroy_process_group()


def make(folder: Path, tensor: int, pipeline: int, tied: bool, experts: int | None) -> None:
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor, pipeline, expert_model_parallel_size=2 if experts else 1)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    model = build(tensor, pipeline, tied, experts).eval()
    logits = read(model)
    optimizer = after_a_step(model)
    iteration = folder / "iter_0000005"
    if dist.get_rank() == 0:
        iteration.mkdir(parents=True)
        (folder / "latest_checkpointed_iteration.txt").write_text("5")
    dist.barrier()
    weights = model.sharded_state_dict()
    state = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, metadata=OPTIMIZER), "iteration": 5}
    dist_checkpointing.save(state, str(iteration))
    alike = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_data_parallel_rank()
    if logits is not None and alike == (0, 0):
        torch.save(logits, folder / "logits.pt")
    dist.barrier()


def build(tensor: int, pipeline: int, tied: bool, experts: int | None) -> Any:
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    of_experts = {
        "num_moe_experts": experts,
        "moe_router_topk": 2,
        "moe_ffn_hidden_size": 80,
        "expert_model_parallel_size": 2,
        "moe_token_dispatcher_type": "alltoall",
        "moe_router_load_balancing_type": "none",
    }
    config = TransformerConfig(
        num_layers=4,
        hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=80,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        init_method_std=0.1,
        use_cpu_initialization=True,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        pipeline_dtype=torch.float32,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        **(of_experts if experts else {}),
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(num_experts=experts, moe_grouped_gemm=False, normalization="RMSNorm"),
        vocab_size=448,
        max_sequence_length=128,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=tied,
        parallel_output=False,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    stage = parallel_state.get_pipeline_model_parallel_rank()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "layernorm" in name:  # norms of one would hide that one took another's place
                drawn = torch.Generator().manual_seed(100 * stage + number)
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=drawn))
    return model


@torch.no_grad()
def read(model: Any) -> torch.Tensor | None:
    """The logits [2, 30, 448], on the last stage."""
    from megatron.core import parallel_state

    future = torch.ones(1, 1, 30, 30, dtype=torch.bool).triu(1)
    if not model.pre_process:
        hidden = torch.empty(30, 2, 48)
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out = model(IDS, torch.arange(30).expand(2, -1), future)
    if model.post_process:
        return out
    dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
    return None


def after_a_step(model: Any) -> Any:
    """Megatron-core's distributed optimizer, with states as a step of no gradients leaves them."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    options = DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=False)
    wrapped = DistributedDataParallel(model.config, options, model)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=0.0, weight_decay=0.0, use_distributed_optimizer=True), [wrapped]
    )
    wrapped.zero_grad_buffer()
    optimizer.step()
    return optimizer


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
