"""Facts about each supported architecture: what its config.json calls things, and what a missing key means.

A config.json may leave out what equals the default of its class, so those defaults are part of the checkpoint.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ConfigKeys:
    """Keys of config.json, the first that is there counts."""

    num_layers: tuple[str, ...] = ("num_hidden_layers",)
    num_heads: tuple[str, ...] = ("num_attention_heads",)
    num_kv_heads: tuple[str, ...] = ("num_key_value_heads",)  # empty: always num_heads
    hidden_size: tuple[str, ...] = ("hidden_size",)
    intermediate_size: tuple[str, ...] = ("intermediate_size",)
    max_positions: tuple[str, ...] = ("max_position_embeddings",)
    num_experts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `model_type`: key names, and the values of keys that are missing."""

    num_layers: int
    num_heads: int
    num_kv_heads: int | None  # None: num_heads
    head_dim: int | None  # None: hidden_size / num_heads
    hidden_size: int
    intermediate_size: int | None  # None: four times hidden_size
    vocab_size: int
    max_positions: int
    is_tied: bool
    sliding_window: int | None = None
    has_window_switch: bool = False  # sliding_window counts only with use_sliding_window
    num_experts: int | None = None
    keys: ConfigKeys = field(default_factory=ConfigKeys)


GPT2_KEYS = ConfigKeys(
    num_layers=("n_layer", "num_hidden_layers"),
    num_heads=("n_head", "num_attention_heads"),
    num_kv_heads=(),
    hidden_size=("n_embd", "hidden_size"),
    intermediate_size=("n_inner",),
    max_positions=("n_positions", "max_position_embeddings", "n_ctx"),
)

LLAMA = Architecture(32, 32, None, None, 4096, 11008, 32000, 2048, False)
GEMMA3 = Architecture(26, 8, 4, 256, 2304, 9216, 262_208, 131_072, True, sliding_window=4096)

ARCHITECTURES = {
    "llama": LLAMA,
    "qwen2": Architecture(32, 32, 32, None, 4096, 22016, 151_936, 32768, False, 4096, has_window_switch=True),
    "qwen3": Architecture(32, 32, 32, 128, 4096, 22016, 151_936, 32768, False, 4096, has_window_switch=True),
    "mistral": Architecture(32, 32, 8, None, 4096, 14336, 32000, 131_072, False, sliding_window=4096),
    "mixtral": Architecture(
        32,
        32,
        8,
        None,
        4096,
        14336,
        32000,
        131_072,
        False,
        num_experts=8,
        keys=ConfigKeys(num_experts=("num_local_experts", "num_experts")),
    ),
    "gemma2": Architecture(26, 8, 4, 256, 2304, 9216, 256_000, 8192, True, sliding_window=4096),
    "gemma3_text": GEMMA3,
    "gpt2": Architecture(12, 12, None, None, 768, None, 50257, 1024, True, keys=GPT2_KEYS),
    "phi3": Architecture(32, 32, None, None, 3072, 8192, 32064, 4096, False),
    "opt": Architecture(
        12,
        12,
        None,
        None,
        768,
        3072,
        50272,
        2048,
        True,
        keys=ConfigKeys(num_kv_heads=(), intermediate_size=("ffn_dim",)),
    ),
}

DISTILBERT_KEYS = ConfigKeys(
    num_layers=("n_layers", "num_hidden_layers"),
    num_heads=("n_heads", "num_attention_heads"),
    num_kv_heads=(),
    hidden_size=("dim", "hidden_size"),
    intermediate_size=("hidden_dim", "intermediate_size"),
)
BERT = Architecture(12, 12, None, None, 768, 3072, 30522, 512, False)

ENCODERS = {
    "bert": BERT,
    "roberta": Architecture(12, 12, None, None, 768, 3072, 50265, 512, False),
    "xlm-roberta": Architecture(12, 12, None, None, 768, 3072, 30522, 512, False),
    "distilbert": Architecture(6, 12, None, None, 768, 3072, 30522, 512, False, keys=DISTILBERT_KEYS),
    "modernbert": Architecture(22, 12, None, None, 768, 1152, 50368, 8192, False),
    "deberta-v2": Architecture(24, 24, None, None, 1536, 6144, 128_100, 512, False),
}
EMBEDDING_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
TENSOR_CUT_ENCODERS = ("bert", "roberta", "xlm-roberta", *EMBEDDING_DECODERS)

LAYER_PATTERN = re.compile(r"(?:^|\.)(?:layers?|h)\.([0-9]{1,6})\.")
FIRST_STAGE_PATTERN = re.compile(r"(?:^|\.)(?:embed_tokens|embed_positions|project_in|wte|wpe|embeddings)\.")
EMBEDDING_PATTERN = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$")
HEAD_PATTERN = re.compile(r"(?:^|\.)lm_head\.")
# Parts of a multimodal checkpoint that text generation never loads, and buffers that old files carry along.
UNUSED_PATTERN = re.compile(
    r"(?:^|\.)(?:vision_tower|multi_modal_projector|vision_model)\.|\.attn\.(?:bias|masked_bias)$|\.rotary_emb\.inv_freq$"
    r"|(?:^|\.)embeddings\.position_ids$|(?:^|\.)cls\.(?:predictions|seq_relationship)\."
)
WHOLE_PATTERN = re.compile(r"\.(?:block_sparse_moe\.gate|mlp\.gate|mlp\.router)\.weight$")  # not cut by tensor ranks


def layer_of(tensor_name: str) -> int | None:
    """Index of the layer a tensor belongs to; None: embeddings, norm, head, or unused."""
    match = None if UNUSED_PATTERN.search(tensor_name) else LAYER_PATTERN.search(tensor_name)
    return int(match[1]) if match else None
