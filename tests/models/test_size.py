"""Sizes from the configuration alone, against published counts and against `transformers`' own models."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from bigtrain.config import ModelConfig, load_config
from bigtrain.models.size import flops_per_token, parameter_count, t5_flops

MODELS = Path(__file__).parent.parent.parent / "configs" / "models"
PUBLISHED = {  # parameters of the released weights
    "bert-base": 109_514_298,
    "gemma2-2b": 2_614_341_888,
    "gemma3-1b": 999_885_952,
    "gpt2-small": 124_439_808,
    "llama3.2-1b": 1_235_814_400,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "olmo2-1b": 1_484_916_736,
    "phi3-mini": 3_821_079_552,
    "pythia-160m": 162_322_944,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "roberta-base": 124_697_433,
    "t5-small": 60_506_624,
    "t5-v1_1-base": 247_577_856,
    "t5-v1_1-small": 76_961_152,
    "qwen3-0.6b": 596_049_920,
    "qwen3-30b-a3b": 30_532_122_624,
}
PEERS: dict[str, type[PretrainedConfig]] = {  # of `transformers`, where the options alone do not tell
    "gemma2-2b": Gemma2Config,
    "gemma3-1b": Gemma3TextConfig,
    "mistral-7b": MistralConfig,
    "olmo2-1b": Olmo2Config,
    "phi3-mini": Phi3Config,
    "pythia-160m": GPTNeoXConfig,
    "qwen3-0.6b": Qwen3Config,
    "qwen3-30b-a3b": Qwen3MoeConfig,
}
PAPER = {"gpt3-1.3b": (1.3e9, 2), "gpt3-6.7b": (6.7e9, 2), "gpt3-175b": (175e9, 3)}  # rounded to so many digits
NAMES = sorted(path.stem for path in MODELS.glob("*.yaml"))
RUN_WORDS = ["data.train=x", "training={output_dir: x, steps: 1, global_batch_size: 1, sequence_length: 64}"]


def model_of(name: str, *overrides: str) -> ModelConfig:
    return load_config(MODELS / f"{name}.yaml", [*RUN_WORDS, *overrides]).model


def hugging_face(model: ModelConfig, device: str = "meta") -> PreTrainedModel:
    """`transformers`' model of the same shape, by default without memory."""
    if model.architecture == "t5":
        with torch.device(device):
            return hugging_face_t5(model)
    if model.architecture == "bert":
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        shape = model.model_dump(include={*names, "hidden_act", "type_vocab_size", "tie_word_embeddings"})
        bert = BertConfig(**shape, intermediate_size=model.ffn_size)
        with torch.device(device):
            return (BertForPreTraining if model.add_pooling_layer else BertForMaskedLM)(bert)
    if model.position_embedding == "learned":
        gpt2 = GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=model.max_position_embeddings,
            n_embd=model.hidden_size,
            n_layer=model.num_hidden_layers,
            n_head=model.num_attention_heads,
            n_inner=model.intermediate_size,
            tie_word_embeddings=model.tie_word_embeddings,
        )
        with torch.device(device):
            return GPT2LMHeadModel(gpt2)
    shape = model.model_dump(
        include={
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "tie_word_embeddings",
        }
    )
    if shape["intermediate_size"] is None:
        shape["intermediate_size"] = 4 * model.hidden_size
    heads = model.num_key_value_heads if model.num_key_value_heads is not None else model.num_attention_heads
    if model.num_experts:
        shape |= {"num_local_experts": model.num_experts, "num_experts_per_tok": model.num_experts_per_tok}
        shape |= {"intermediate_size": model.moe_intermediate_size, "head_dim": model.head_dim}
        with torch.device(device):
            return MixtralForCausalLM(MixtralConfig(**shape, num_key_value_heads=heads))
    if model.qkv_bias:
        with torch.device(device):
            return Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=heads))
    biases = {"attention_bias": model.linear_bias, "mlp_bias": model.linear_bias, "head_dim": model.head_dim}
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=heads, **biases))


def hugging_face_t5(model: ModelConfig) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=model.vocab_size,
        d_model=model.hidden_size,
        d_kv=model.head_size,
        d_ff=model.ffn_size,
        num_layers=model.num_hidden_layers,
        num_decoder_layers=model.num_decoder_layers,
        num_heads=model.num_attention_heads,
        feed_forward_proj="gated-gelu" if model.gated_mlp else "relu",
        tie_word_embeddings=model.tie_word_embeddings,
        use_cache=False,
    )
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_count_is_the_published_one(name: str) -> None:
    assert parameter_count(model_of(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PAPER)
def test_count_rounds_to_the_papers(name: str) -> None:
    figure, digits = PAPER[name]
    assert float(f"{parameter_count(model_of(name)):.{digits - 1}e}") == figure


def peer(name: str, model: ModelConfig, device: str = "meta") -> PreTrainedModel:
    """`transformers`' model of a file of ours."""
    if name not in PEERS:
        return hugging_face(model, device)
    shape = {
        **model.model_dump(exclude_none=True),
        "num_key_value_heads": model.kv_heads,
        "pad_token_id": None,
        "rotary_pct": model.partial_rotary_factor,
    }
    shape = {key: value for key, value in shape.items() if key not in ("layer_types", "rope_scaling", "hidden_act")}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(PEERS[name](**shape))


@pytest.mark.parametrize("name", NAMES)
def test_count_is_that_of_transformers(name: str) -> None:
    few = ["model.num_hidden_layers=2"] if name == "qwen3-30b-a3b" else []  # 128 experts a layer take long to build
    model = model_of(name, *few)
    assert parameter_count(model) == sum(p.numel() for p in peer(name, model).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_files_comment_tells_the_count(name: str) -> None:
    said = re.search(r"([\d,]+) parameters", (MODELS / f"{name}.yaml").read_text())
    assert said is not None
    assert int(said[1].replace(",", "")) == parameter_count(model_of(name))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.linear_bias=true"],
        ["model.tie_word_embeddings=true"],
        ["model.head_dim=24"],
        ["model.num_key_value_heads=null"],
        ["model.intermediate_size=null"],
        ["model.qkv_bias=true"],
        ["model.linear_bias=true", "model.head_dim=24", "model.num_key_value_heads=1"],
    ],
    ids=" ".join,
)
def test_count_of_every_option_is_that_of_transformers(overrides: list[str]) -> None:
    model = model_of("tiny-llama", *overrides)
    assert parameter_count(model) == sum(p.numel() for p in hugging_face(model).parameters())


@pytest.mark.parametrize("overrides", [["model.add_pooling_layer=true", "model.type_vocab_size=3"]], ids=" ".join)
def test_count_of_berts_options_is_that_of_transformers(overrides: list[str]) -> None:
    model = model_of("tiny-bert", *overrides)
    assert parameter_count(model) == sum(p.numel() for p in hugging_face(model).parameters())


def test_untied_gpt2() -> None:
    model = model_of("tiny-gpt2", "model.tie_word_embeddings=false")
    assert parameter_count(model) == sum(p.numel() for p in hugging_face(model).parameters())


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-mixtral", "tiny-bert", "demo"])
@pytest.mark.parametrize("length", [64, 100])
def test_flops_are_those_that_pytorch_counts(name: str, length: int) -> None:
    """PyTorch's own counter over a forward and a backward pass of `transformers`' model."""
    model = model_of(name)
    network = hugging_face(model, "cpu")
    network.config._attn_implementation = "eager"  # whole scores: PaLM's convention counts the masked half too
    tokens = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        network(tokens).logits.sum().backward()
    # Llama's rotary angles are an outer product, once a pass and not worth a place in the formula
    angles = model.head_size * length if model.position_embedding == "rope" else 0
    assert counter.get_total_flops() - angles == flops_per_token(model, length) * length


def test_flops_of_a_t5_are_those_that_pytorch_counts() -> None:
    """Of layers of each stack, and of the output layer, by the same counter over models that differ in one of them."""

    def counted(*overrides: str) -> float:
        network = hugging_face(model_of("tiny-t5", *overrides), "cpu")
        inputs, targets = torch.zeros(1, 24, dtype=torch.long), torch.zeros(1, 10, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            network(input_ids=inputs, decoder_input_ids=targets).logits.sum().backward()
        return counter.get_total_flops()

    encoder, decoder, output = t5_flops(model_of("tiny-t5"), 24, 10)
    whole = counted()
    assert whole - counted("model.num_hidden_layers=3") == encoder
    assert whole - counted("model.num_decoder_layers=2") == decoder
    assert whole == 4 * encoder + 3 * decoder + output


def test_a_window_ends_what_is_counted() -> None:
    """Of Gemma 2's 26 layers every other one sees 4,096 tokens at most, by hand."""
    matrices = 26 * 2304 * ((2 * 8 + 2 * 4) * 256 + 3 * 9216) + 256000 * 2304
    seen = {4096: 26 * 4096, 8192: 13 * 4096 + 13 * 8192}
    for length, tokens in seen.items():
        assert flops_per_token(model_of("gemma2-2b"), length) == 6 * matrices + 12 * 8 * 256 * tokens


def test_flops_follow_the_papers_example() -> None:
    """PaLM's appendix B by hand for GPT-3 175B: 6 N + 12 L H Q T, N without embeddings but with the output layer."""
    weights = 96 * 12 * 12288**2 + 50257 * 12288
    assert flops_per_token(model_of("gpt3-175b"), 2048) == 6 * weights + 12 * 96 * 96 * 128 * 2048


@pytest.mark.parametrize("chosen", [1, 3])
def test_of_experts_a_token_pays_for_those_it_meets(chosen: int) -> None:
    model = model_of("tiny-mixtral", f"model.num_experts_per_tok={chosen}", "model.norm_topk_prob=false")
    attention, router, output = 64 * (2 * 8 + 2 * 4) * 8, 64 * 4, 256 * 64
    weights = 4 * (attention + router + chosen * 3 * 64 * 96) + output
    assert flops_per_token(model, 32) == 6 * weights + 12 * 4 * 8 * 8 * 32


def test_size_needs_no_torch() -> None:
    program = "import sys, bigtrain.models.size; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", program], check=True)
