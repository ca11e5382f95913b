"""What a shard's largest steps take beside weights and KV cache: a model of what the engine measures on a GPU.

(engine/memory_profile.py measures it, with the steps of engine/largest_steps.py.)
"""

from dataclasses import dataclass

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.types.shards import KvShape, ShardSpec
from serve_app.types.steps import MAX_LOGPROB_TOKENS

_NUM_HIDDEN = 4  # hidden states that are alive at once: the residual, the layer's input, its norm, what comes back
_SCORE_BYTES = 4  # drawing works in float32
_NUM_SCORES = 5  # of a sequence's row of the vocabulary at once: adjusted, sorted with their ids, their sums
_KEPT_BYTES = 5  # of each sequence and token of the vocabulary: how often it came, and whether in the prompt


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The largest steps there may be."""

    num_tokens: int
    num_sequences: int
    num_context_tokens: int  # of the longest sequence


def activation_bytes(spec: ModelSpec, shard: ShardSpec, kv: KvShape, num_heads: int, steps: StepSizes) -> int:
    """Bytes at the peak of the largest step; kv and num_heads are those of the shard's rank."""
    layers = layer_activation_bytes(spec, shard, kv, num_heads, steps.num_tokens, steps.num_context_tokens)
    return layers + (_drawing(spec, kv.dtype_bytes, steps) if shard.is_last else 0)


def layer_activation_bytes(
    spec: ModelSpec, shard: ShardSpec, kv: KvShape, num_heads: int, num_tokens: int, num_context_tokens: int = 0
) -> int:
    """The same of layers alone. num_context_tokens: gathered from a KV cache."""
    hidden = _NUM_HIDDEN * num_tokens * spec.hidden_size
    layer = max(_attention(kv, num_heads, num_tokens, num_context_tokens), _mlp(spec, shard, num_tokens))
    return kv.dtype_bytes * (hidden + layer)


def _attention(kv: KvShape, num_heads: int, num_tokens: int, num_context_tokens: int) -> int:
    """Numbers: queries and keys before and after rotation, values, outputs, and a context gathered from its blocks."""
    value_dim = kv.value_dim or kv.head_dim
    rotated = 2 * (num_heads + kv.num_heads) * kv.head_dim
    outputs = kv.num_heads * value_dim + 2 * num_heads * value_dim
    gathered = num_context_tokens * kv.num_heads * (kv.head_dim + value_dim)
    return num_tokens * (rotated + outputs) + gathered


def _mlp(spec: ModelSpec, shard: ShardSpec, num_tokens: int) -> int:
    """Numbers: gate, up and their product; of experts for each one that a token goes to, with its input and output."""
    inner = spec.inner_sizes.get("moe_intermediate_size", spec.intermediate_size or 4 * spec.hidden_size)
    inner = -(-inner // shard.num_ranks)
    if spec.num_experts is None:
        return 3 * num_tokens * inner
    return (spec.experts_per_token or 1) * num_tokens * (3 * inner + 2 * spec.hidden_size)


def _drawing(spec: ModelSpec, dtype_bytes: int, steps: StepSizes) -> int:
    """Bytes: the logits of sequences and of prompt tokens whose probabilities are asked for, and what is drawn from."""
    num_prompt_rows = min(MAX_LOGPROB_TOKENS, max(0, steps.num_tokens - steps.num_sequences))
    rows = steps.num_sequences * (dtype_bytes + _NUM_SCORES * _SCORE_BYTES + _KEPT_BYTES)
    return spec.vocab_size * (rows + num_prompt_rows * (dtype_bytes + _SCORE_BYTES))
