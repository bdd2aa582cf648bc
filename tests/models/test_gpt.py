"""GPT by configuration: every combination of parts trains, and the well-known ones are transformers' models."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from bigtrain.config import Config, validate
from bigtrain.data.loader import CausalBatch
from bigtrain.models.gpt import ACTIVATIONS, GPT, build_gpt
from bigtrain.models.size import parameter_count
from bigtrain.parallel.engine import Engine
from bigtrain.parallel.topology import Layout

PARTS = {
    "position_embedding": ["rope", "learned"],
    "normalization": ["rmsnorm", "layernorm"],
    "gated_mlp": ["true", "false"],
    "tie_word_embeddings": ["true", "false"],
    "num_key_value_heads": ["null", "2"],
}
BIASES = [["linear_bias=false"], ["linear_bias=true"], ["qkv_bias=true"]]
COMBINATIONS = [
    [*(f"model.{key}={value}" for key, value in zip(PARTS, values, strict=True)), *(f"model.{bias}" for bias in biases)]
    for *values, biases in itertools.product(*PARTS.values(), BIASES)
]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("gated", ["true", "false"])
def test_every_activation_trains_gated_or_not(
    act: str, gated: str, tiny: Callable[..., Config], engine_of: Callable[[Config], Engine], batches_of: Callable
) -> None:
    assert_trains(tiny(f"model.hidden_act={act}", f"model.gated_mlp={gated}"), engine_of, batches_of)


@pytest.mark.parametrize("words", COMBINATIONS, ids=lambda words: "-".join(w.split("=")[1] for w in words))
def test_every_combination_trains_and_has_the_parameters_it_should(
    words: list[str], tiny: Callable[..., Config], engine_of: Callable[[Config], Engine], batches_of: Callable
) -> None:
    assert_trains(tiny("model.num_hidden_layers=1", "model.head_dim=6", *words), engine_of, batches_of)


def assert_trains(
    config: Config, engine_of: Callable[[Config], Engine], batches_of: Callable[..., list[CausalBatch]]
) -> None:
    validate(config, 1)
    engine, batches = engine_of(config), batches_of(config)
    parameters = dict(engine.chunks[0].module.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == parameter_count(config.model)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    losses = [engine.train_step(batches, 64, 1e-2, step).loss.item() for step in range(2)]
    assert losses[0] == pytest.approx(6.24, abs=0.1), "log(512): it knows nothing yet"
    assert losses[1] < losses[0] - 0.2
    assert [name for name, p in parameters.items() if torch.equal(before[name], p)] == []


# ------------------------------------------------------------------------------- against transformers


@dataclass(frozen=True)
class Heads:
    """How attention's heads are counted."""

    query: int
    groups: int
    size: int

    def interleave(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rows of Megatron-core's fused matrix or bias: per group its queries, its key, its value."""
        width = q.shape[1:]
        parts = [q.view(self.groups, -1, *width), k.view(self.groups, -1, *width), v.view(self.groups, -1, *width)]
        return torch.cat(parts, dim=1).reshape(-1, *width)


def fill(gpt: GPT, weights: dict[str, Tensor]) -> GPT:
    """Copy weights into a model, each of its parameters once."""
    parameters = dict(gpt.named_parameters())
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.shape == weights[name].shape, name
            parameter.copy_(weights[name])
    return gpt.eval()


def from_gpt2(model: GPT2LMHeadModel, heads: Heads) -> dict[str, Tensor]:
    """GPT-2's weights by Megatron-core's names; its Conv1D matrices are transposed."""
    body = model.transformer
    weights = {
        "embedding.word_embeddings.weight": body.wte.weight,
        "embedding.position_embeddings.weight": body.wpe.weight,
        "decoder.final_layernorm.weight": body.ln_f.weight,
        "decoder.final_layernorm.bias": body.ln_f.bias,
    }
    for number, layer in enumerate(body.h):
        sources = {
            "self_attention.linear_proj": layer.attn.c_proj,
            "mlp.linear_fc1": layer.mlp.c_fc,
            "mlp.linear_fc2": layer.mlp.c_proj,
            "input_layernorm": layer.ln_1,
            "pre_mlp_layernorm": layer.ln_2,
        }
        for name, source in sources.items():
            weights[f"decoder.layers.{number}.{name}.weight"] = source.weight.T
            weights[f"decoder.layers.{number}.{name}.bias"] = source.bias
        qkv = f"decoder.layers.{number}.self_attention.linear_qkv"
        weights[f"{qkv}.weight"] = heads.interleave(*layer.attn.c_attn.weight.T.chunk(3))
        weights[f"{qkv}.bias"] = heads.interleave(*layer.attn.c_attn.bias.chunk(3))
    return weights


def from_qwen2(model: Qwen2ForCausalLM, heads: Heads) -> dict[str, Tensor]:
    """Qwen2's weights by Megatron-core's names; a gated matrix is the gate above the rest."""
    weights = {
        "embedding.word_embeddings.weight": model.model.embed_tokens.weight,
        "decoder.final_layernorm.weight": model.model.norm.weight,
        "output_layer.weight": model.lm_head.weight,
    }
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        parts = {
            "self_attention.linear_qkv.weight": heads.interleave(*(p.weight for p in projections)),
            "self_attention.linear_qkv.bias": heads.interleave(*(p.bias for p in projections)),
            "self_attention.linear_proj.weight": attention.o_proj.weight,
            "mlp.linear_fc1.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            "mlp.linear_fc2.weight": mlp.down_proj.weight,
            "input_layernorm.weight": layer.input_layernorm.weight,
            "pre_mlp_layernorm.weight": layer.post_attention_layernorm.weight,
        }
        weights |= {f"decoder.layers.{number}.{name}": value for name, value in parts.items()}
    return weights


def randomise(model: torch.nn.Module) -> None:
    """Norms of one and biases of zero would hide that they are not applied."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def assert_same_logits(gpt: GPT, peer: torch.nn.Module) -> None:
    tokens = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = gpt(tokens, torch.arange(40).expand(2, -1), None)
        theirs = peer(tokens, use_cache=False).logits
    assert theirs.std() > 0.5, "logits that say something"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gpt2_is_gpt2(world: Layout, tiny: Callable[..., Config]) -> None:
    config = tiny(
        "model.position_embedding=learned",
        "model.normalization=layernorm",
        "model.hidden_act=gelu_new",
        "model.gated_mlp=false",
        "model.linear_bias=true",
        "model.tie_word_embeddings=true",
        "model.num_key_value_heads=null",
    )
    peer = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=48))
    randomise(peer)
    assert_same_logits(fill(build_gpt(config)[0], from_gpt2(peer.eval(), Heads(4, 4, 8))), peer)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_qwen2_is_qwen2(act: str, world: Layout, tiny: Callable[..., Config]) -> None:
    """And with it rotary positions of another base, grouped queries, every gated activation and another epsilon."""
    config = tiny("model.qkv_bias=true", f"model.hidden_act={act}", "model.rope_theta=500.0", "model.norm_eps=0.01")
    peer = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=512,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            hidden_act=act,
            rope_theta=500.0,
            rms_norm_eps=0.01,
            tie_word_embeddings=False,
        )
    )
    randomise(peer)
    assert_same_logits(fill(build_gpt(config)[0], from_qwen2(peer.eval(), Heads(4, 2, 8))), peer)
