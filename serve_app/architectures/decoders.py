"""The families that generate. Those of llama's shape embed and classify too."""

from dataclasses import replace

from serve_app.architectures.record import (
    SHARED_NORM,
    Architecture,
    ConfigKeys,
    EncoderFacts,
    FusedClasses,
    Parts,
    Sizes,
    TensorCut,
)

_QKV = ("q_proj", "k_proj", "v_proj")
_GATE_UP = ("gate_proj", "up_proj")

_LLAMA = Architecture(
    sizes=Sizes(
        num_layers=32, num_heads=32, hidden_size=4096, intermediate_size=11008, vocab_size=32000, max_positions=2048
    ),
    tensor_cut=TensorCut(),
    encoder=EncoderFacts(head_pools="last", is_causal=True),
    fused=FusedClasses(norm="LlamaRMSNorm", layer="LlamaDecoderLayer"),
    same_input=(_QKV, _GATE_UP),
)

_MISTRAL = replace(
    _LLAMA,
    sizes=replace(_LLAMA.sizes, num_kv_heads=8, intermediate_size=14336, max_positions=131_072, sliding_window=4096),
    fused=FusedClasses(norm="MistralRMSNorm", layer="MistralDecoderLayer", has_window_in_config=True),
)

_QWEN2 = replace(
    _LLAMA,
    sizes=replace(
        _LLAMA.sizes,
        num_kv_heads=32,
        intermediate_size=22016,
        vocab_size=151_936,
        max_positions=32768,
        sliding_window=4096,
    ),
    keys=ConfigKeys(window_switch="use_sliding_window"),
    fused=FusedClasses(norm="Qwen2RMSNorm", layer="Qwen2DecoderLayer"),
)

_QWEN3 = replace(
    _QWEN2,
    sizes=replace(_QWEN2.sizes, head_dim=128),
    fused=FusedClasses(norm="Qwen3RMSNorm", layer="Qwen3DecoderLayer"),
)

_OLMO2 = Architecture(
    sizes=replace(_LLAMA.sizes, vocab_size=50304),
    tensor_cut=TensorCut(
        plan={  # transformers' own keeps whole copies of the attention on each rank
            "layers.*.self_attn.q_proj": "colwise",
            "layers.*.self_attn.k_proj": "colwise",
            "layers.*.self_attn.v_proj": "colwise",
            "layers.*.self_attn.q_norm": SHARED_NORM,
            "layers.*.self_attn.k_norm": SHARED_NORM,
            "layers.*.self_attn.o_proj": "rowwise",
            "layers.*.mlp.gate_proj": "colwise",
            "layers.*.mlp.up_proj": "colwise",
            "layers.*.mlp.down_proj": "rowwise",
        },
    ),
    fused=FusedClasses(norm="Olmo2RMSNorm"),
    same_input=(_QKV, _GATE_UP),
)

_GEMMA2 = Architecture(
    sizes=Sizes(
        num_layers=26,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        hidden_size=2304,
        intermediate_size=9216,
        vocab_size=256_000,
        max_positions=8192,
        sliding_window=4096,
        is_tied=True,
    ),
    tensor_cut=TensorCut(),
    same_input=(_QKV, _GATE_UP),
)

_GEMMA3 = replace(
    _GEMMA2,
    sizes=replace(_GEMMA2.sizes, vocab_size=262_208, max_positions=131_072),
    keys=replace(_GEMMA2.keys, has_stretched_positions=True),
    encoder=EncoderFacts(head_pools="last", is_causal=True),
)

_MIXTRAL = Architecture(
    sizes=replace(_MISTRAL.sizes, sliding_window=None, num_experts=8),
    keys=ConfigKeys(num_experts=("num_local_experts", "num_experts")),
    tensor_cut=TensorCut(
        packed={"layers.*.mlp.experts.gate_up_proj": ("intermediate", "intermediate")},
        divided={"mlp.experts": ("intermediate_dim",)},
        routers=("block_sparse_moe.gate", "mlp.gate", "mlp.router"),
    ),
    fused=FusedClasses(norm="MixtralRMSNorm"),
    same_input=(_QKV,),
)

_GPT2 = Architecture(
    sizes=Sizes(
        num_layers=12,
        num_heads=12,
        hidden_size=768,
        intermediate_size=None,
        vocab_size=50257,
        max_positions=1024,
        is_tied=True,
    ),
    keys=ConfigKeys(
        num_layers=("n_layer", "num_hidden_layers"),
        num_heads=("n_head", "num_attention_heads"),
        num_kv_heads=(),
        hidden_size=("n_embd", "hidden_size"),
        intermediate_size=("n_inner",),
        max_positions=("n_positions", "max_position_embeddings", "n_ctx"),
    ),
    parts=Parts(layers="h", embedding="wte", positions=("wpe",), exit=("ln_f",)),
    tensor_cut=TensorCut(
        plan={
            "h.*.attn.c_attn": "packed_colwise",
            "h.*.attn.c_proj": "rowwise",
            "h.*.mlp.c_fc": "colwise",
            "h.*.mlp.c_proj": "rowwise",
        },
        packed={"h.*.attn.c_attn": ("heads", "heads", "heads")},
        divided={"attn": ("split_size", "num_heads")},
    ),
    has_transposed_matrices=True,
)

_OPT = Architecture(
    sizes=Sizes(
        num_layers=12,
        num_heads=12,
        hidden_size=768,
        intermediate_size=3072,
        vocab_size=50272,
        max_positions=2048,
        is_tied=True,
    ),
    keys=ConfigKeys(num_kv_heads=(), intermediate_size=("ffn_dim",)),
    parts=Parts(
        layers="decoder.layers",
        embedding="decoder.embed_tokens",
        entry=("decoder.project_in",),
        positions=("decoder.embed_positions",),
        exit=("decoder.final_layer_norm", "decoder.project_out"),
    ),
    tensor_cut=TensorCut(
        plan={
            "decoder.layers.*.self_attn.q_proj": "colwise",
            "decoder.layers.*.self_attn.k_proj": "colwise",
            "decoder.layers.*.self_attn.v_proj": "colwise",
            "decoder.layers.*.self_attn.out_proj": "rowwise",
            "decoder.layers.*.fc1": "colwise",
            "decoder.layers.*.fc2": "rowwise",
        },
        divided={"self_attn": ("num_heads",)},
    ),
    same_input=(_QKV,),
)

_PHI3 = Architecture(
    sizes=Sizes(
        num_layers=32,
        num_heads=32,
        hidden_size=3072,
        intermediate_size=8192,
        vocab_size=32064,
        max_positions=4096,
        original_max_positions=4096,
    ),
    keys=ConfigKeys(longrope_names=("longrope", "su", "yarn")),  # what old checkpoints call it
    tensor_cut=TensorCut(
        plan={  # transformers' own keeps whole copies on each rank
            "layers.*.self_attn.qkv_proj": "packed_colwise",
            "layers.*.self_attn.o_proj": "rowwise",
            "layers.*.mlp.gate_up_proj": "packed_colwise",
            "layers.*.mlp.down_proj": "rowwise",
        },
        packed={
            "layers.*.self_attn.qkv_proj": ("heads", "kv_heads", "kv_heads"),
            "layers.*.mlp.gate_up_proj": ("intermediate", "intermediate"),
        },
        divided={"self_attn": ("num_key_value_heads",)},
        divided_config="self_attn",
    ),
    fused=FusedClasses(norm="Phi3RMSNorm"),
)

DECODERS = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "olmo2": _OLMO2,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "mixtral": _MIXTRAL,
    "gpt2": _GPT2,
    "gpt-sw3": _GPT2,
    "opt": _OPT,
    "phi3": _PHI3,
}
