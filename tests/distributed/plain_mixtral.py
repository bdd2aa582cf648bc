"""The oracle for a mixture of experts: `transformers`' own Mixtral, and the router's losses from their papers.

Nothing of bigtrain is imported here, and the map from Hugging Face's weights to Megatron-core's is
written out by hand.
"""

from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

LAYERS, EXPERTS, CHOSEN = 5, 4, 2


def mixtral(vocab_size: int, attention: str = "sdpa") -> MixtralForCausalLM:
    """A tiny random Mixtral in float32, the same at every call, with one of `transformers`' ways to sum attention."""
    torch.manual_seed(11)
    config = MixtralConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=96,
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        max_position_embeddings=128,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        attention_dropout=0.0,
        output_router_logits=True,
        use_cache=False,
    )
    model = MixtralForCausalLM._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # exactly one would hide a norm that is not applied
                parameter.add_(0.1 * torch.randn_like(parameter))
            if "block_sparse_moe" in name:  # experts that differ, and a router that has made up its mind
                parameter.mul_(5)
    return model


def feed_forward(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The experts stacked along the first axis; of each the gate (w1) lies above the up projection (w3)."""
    experts = layer.block_sparse_moe.experts
    return {
        "mlp.router.weight": layer.block_sparse_moe.gate.weight,
        "mlp.experts.experts.linear_fc1.weight": torch.stack([torch.cat([e.w1.weight, e.w3.weight]) for e in experts]),
        "mlp.experts.experts.linear_fc2.weight": torch.stack([e.w2.weight for e in experts]),
    }


class RouterLosses:
    """What the routers add to the loss, and what it was in each step.

    Of each sequence of each layer: Switch Transformer's load balancing, equations 4 to 6 of arXiv:2101.03961, with
    f_i the share of expert i among the `CHOSEN` places of each token, and ST-MoE's z-loss, equation 5 of
    arXiv:2202.08906. Both are added for each layer; told is their mean over layers and sequences.
    """

    def __init__(self, aux_coef: float, z_coef: float) -> None:
        self.aux_coef, self.z_coef = aux_coef, z_coef
        self.seen: list[tuple[float, float]] = []
        """Of each micro-batch, layer and sequence."""

    def __call__(self, outputs: Any, count: int) -> torch.Tensor:
        added = torch.zeros(())
        for layer in outputs.router_logits:
            for logits in layer.view(count, -1, EXPERTS):
                probabilities = logits.softmax(-1)
                aux = torch.zeros(())
                for expert in range(EXPERTS):
                    f = (logits.topk(CHOSEN).indices == expert).sum() / (len(logits) * CHOSEN)
                    aux = aux + EXPERTS * f * probabilities[:, expert].mean()
                z = logits.exp().sum(-1).log().square().mean()
                added = added + (self.aux_coef * aux + self.z_coef * z) / count
                self.seen.append((aux.item(), z.item()))
        return added

    def of_steps(self, steps: int) -> list[tuple[float, float]]:
        """The mean (load-balancing loss, z-loss) of each of so many steps."""
        means = torch.tensor(self.seen, dtype=torch.float64).view(steps, -1, 2).mean(1)
        return [(aux, z) for aux, z in means.tolist()]
