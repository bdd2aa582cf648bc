"""GPT-2. Its matrices are [in, out], and its query, key and value lie one after the other."""

from bigtrain.convert.family import Family
from bigtrain.convert.mapping import QUERY_KEY_VALUE, TURNED, WHOLE, Cut, query_key_value_rows

_LAYER = "transformer.h.{layer}."

GPT2 = Family(
    name="GPT-2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    weights={
        "embedding.word_embeddings.weight": {"transformer.wte.weight": WHOLE},
        "embedding.position_embeddings.weight": {"transformer.wpe.weight": WHOLE},
        "decoder.layers.input_layernorm.weight": {_LAYER + "ln_1.weight": WHOLE},
        "decoder.layers.input_layernorm.bias": {_LAYER + "ln_1.bias": WHOLE},
        "decoder.layers.self_attention.linear_qkv.weight": {
            _LAYER + "attn.c_attn.weight": Cut(query_key_value_rows, transposed=True)
        },
        "decoder.layers.self_attention.linear_qkv.bias": {_LAYER + "attn.c_attn.bias": QUERY_KEY_VALUE},
        "decoder.layers.self_attention.linear_proj.weight": {_LAYER + "attn.c_proj.weight": TURNED},
        "decoder.layers.self_attention.linear_proj.bias": {_LAYER + "attn.c_proj.bias": WHOLE},
        "decoder.layers.pre_mlp_layernorm.weight": {_LAYER + "ln_2.weight": WHOLE},
        "decoder.layers.pre_mlp_layernorm.bias": {_LAYER + "ln_2.bias": WHOLE},
        "decoder.layers.mlp.linear_fc1.weight": {_LAYER + "mlp.c_fc.weight": TURNED},
        "decoder.layers.mlp.linear_fc1.bias": {_LAYER + "mlp.c_fc.bias": WHOLE},
        "decoder.layers.mlp.linear_fc2.weight": {_LAYER + "mlp.c_proj.weight": TURNED},
        "decoder.layers.mlp.linear_fc2.bias": {_LAYER + "mlp.c_proj.bias": WHOLE},
        "decoder.final_layernorm.weight": {"transformer.ln_f.weight": WHOLE},
        "decoder.final_layernorm.bias": {"transformer.ln_f.bias": WHOLE},
        "output_layer.weight": {"lm_head.weight": WHOLE},
    },
    shape={
        "position_embedding": "learned",
        "normalization": "layernorm",
        "gated_mlp": False,
        "linear_bias": True,
    },
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
        "initializer_range": "initializer_range",
        "norm_eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
        "attention_dropout": "attn_pdrop",
        "hidden_dropout": ("resid_pdrop", "embd_pdrop"),
    },
    ignored=frozenset(
        {
            "n_inner",  # compared by its weights: null is four times the width
            "n_ctx",
            "reorder_and_upcast_attn",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        }
    ),
    buffers=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    prefix="transformer.",
)
