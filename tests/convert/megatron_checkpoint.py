"""A model of megatron-core's own parts, as Megatron-LM builds and saves it: `megatron_checkpoint.py FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from bigtrain.parallel import compat


def main(folder: Path) -> None:
    compat.install()
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=3,
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
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=448,
        max_sequence_length=128,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:  # norms of one would hide that one took another's place
                parameter.add_(0.3 * torch.randn_like(parameter))
        ids = torch.arange(60).reshape(2, 30) * 7 % 448
        future = torch.ones(1, 1, 30, 30, dtype=torch.bool).triu(1)
        torch.save(model(ids, torch.arange(30).expand(2, -1), future), folder / "logits.pt")
    iteration = folder / "iter_0000005"
    iteration.mkdir()
    dist_checkpointing.save({"model": model.sharded_state_dict(), "iteration": 5}, str(iteration))
    (folder / "latest_checkpointed_iteration.txt").write_text("5")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
