"""How fast a planned model will be: each stage reads and computes, whichever takes longer, then sends.

(Roofline model: Williams, Waterman, Patterson, doi:10.1145/1498765.1498785.) A step reads all weights of a stage but
the embedding; of experts those that its tokens go to, taken to be drawn evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import DeviceProfile
from serve_app.planning.memory_plan import MemoryPlan, ShardMemory
from serve_app.planning.planner import served_dtype
from serve_app.types.dtypes import DTYPES

CONTEXT_TOKENS = 1024  # of each sequence in the prediction, if the model and its cache have room for as many
_SUMS_PER_LAYER = 2  # over tensor ranks: after attention and after the MLP


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a stage in one step."""

    read_s: float
    compute_s: float
    link_s: float
    overhead_s: float

    @property
    def total_s(self) -> float:
        """From beginning to end."""
        return max(self.read_s, self.compute_s) + self.link_s + self.overhead_s

    @property
    def bound(self) -> str:
        """What it mostly waits for."""
        parts = {"memory": self.read_s, "compute": self.compute_s, "links": self.link_s, "overhead": self.overhead_s}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True)
class Rates:
    """What one copy is predicted to do with sequences of `context_tokens`."""

    context_tokens: int
    prefill_tokens_per_s: float
    time_to_first_token_s: float  # of a prompt of context_tokens, nothing else running
    decode_tokens_per_s: float  # of one sequence alone
    decode_sequences: int  # as many as run at once
    total_decode_tokens_per_s: float  # of all of them together
    bound: str  # what decoding all of them waits for


def predict_rates(spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> Rates:
    """Of a plan that fits."""
    model = _Roofline(spec, config, profile, memory)
    context = min(CONTEXT_TOKENS, memory.max_model_len, max(1, memory.kv_cache_tokens))
    num_sequences = max(1, memory.sequences_of(context))
    num_stages = config.parallel.pipeline
    num_in_step = -(-num_sequences // num_stages)
    alone = model.times(1, 1, context, is_full=False)
    together = model.times(num_in_step, num_in_step, context, is_full=num_sequences > 1)
    chunk = min(config.engine.max_num_batched_tokens, context)
    first = model.times(chunk, 1, context, is_full=False)
    num_prompts = config.engine.max_num_batched_tokens // chunk
    full = model.times(chunk * num_prompts, num_prompts, context, is_full=True)
    slowest = max(together, key=lambda one: one.total_s)
    num_steps = min(num_stages, num_sequences)  # in flight
    period_s = max(slowest.total_s, sum(one.total_s for one in together) / num_steps)
    return Rates(
        context,
        chunk * num_prompts / max(one.total_s for one in full),
        sum(one.total_s for one in first) * context / chunk,
        1 / sum(one.total_s for one in alone),
        num_sequences,
        num_sequences / (num_steps * period_s),
        slowest.bound,
    )


class _Roofline:
    def __init__(self, spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> None:
        self._spec = spec
        self._profile = profile
        self._weights = memory.weights
        self._stages = memory.shards[:: config.parallel.tensor]
        self._num_ranks = config.parallel.tensor
        self._num_on_node = min(len(memory.shards), profile.devices_per_node)
        self._dtype_bytes = DTYPES[served_dtype(spec, config)].num_bytes
        self._rate = profile.rate(_compute_dtype(spec, config))

    def times(self, num_tokens: int, num_sequences: int, context: int, *, is_full: bool) -> list[StepTime]:
        """Of each stage, with `num_tokens` new tokens in a step; is_full: all stages have steps at the same time."""
        return [self._time(stage, num_tokens, num_sequences, context, is_full=is_full) for stage in self._stages]

    def _time(
        self, stage: ShardMemory, num_tokens: int, num_sequences: int, context: int, *, is_full: bool
    ) -> StepTime:
        share = 1.0
        if self._profile.type == "cpu":  # shards of a node share what it has
            share = 1 / (self._num_on_node if is_full else min(self._num_ranks, self._num_on_node))
        read_bytes = self._weight_bytes(stage, num_tokens) + num_sequences * self._context_bytes(stage, context)
        num_products = num_tokens * (self._products(stage) + self._attention_products(stage, context))
        return StepTime(
            read_bytes / (share * self._profile.read_rate),
            2 * num_products / (share * self._rate),
            self._link_s(stage, num_tokens),
            (stage.shard.end_layer - stage.shard.first_layer) * self._profile.layer_overhead_s,
        )

    def _weight_bytes(self, stage: ShardMemory, num_tokens: int) -> float:
        """Of one rank that a step reads."""
        read = sum(part.on_rank(self._num_ranks) for part in self._weights.parts_on(stage.shard))
        if stage.shard.is_first:
            read -= self._looked_up(stage)
        experts = sum(part.expert_bytes for part in self._weights.parts_on(stage.shard)) / self._num_ranks
        return read - experts * (1 - self._share_of_experts(num_tokens))

    def _looked_up(self, stage: ShardMemory) -> int:
        """Bytes of the embedding, of which a token reads one row; a head that is the same matrix reads all of it."""
        is_head_too = self._spec.is_tied and stage.shard.is_last and self._weights.shares_embedding
        return 0 if is_head_too else self._weights.before.on_rank(self._num_ranks)

    def _share_of_experts(self, num_tokens: int) -> float:
        chosen, num_experts = self._spec.experts_per_token, self._spec.num_experts
        if chosen is None or num_experts is None:
            return 1.0
        return float(1 - (1 - min(1.0, chosen / num_experts)) ** num_tokens)

    def _products(self, stage: ShardMemory) -> float:
        """Of one token, on one rank."""
        parts = self._weights.parts_on(stage.shard)
        chosen, num_experts = self._spec.experts_per_token, self._spec.num_experts
        share = 1.0 if chosen is None or num_experts is None else min(1.0, chosen / num_experts)
        return sum(part.num_products + share * part.num_expert_products for part in parts) / self._num_ranks

    def _attention_products(self, stage: ShardMemory, context: int) -> float:
        value_dim = stage.kv.value_dim or stage.kv.head_dim
        return self._seen(stage, context) * stage.num_heads * (stage.kv.head_dim + value_dim)

    def _context_bytes(self, stage: ShardMemory, context: int) -> float:
        return self._seen(stage, context) * _token_bytes(stage)

    def _seen(self, stage: ShardMemory, context: int) -> int:
        """Tokens that a step looks back at, over all layers of a stage."""
        window = min(context, self._spec.sliding_window or context)
        layers = range(stage.shard.first_layer, stage.shard.end_layer)
        return sum(window if layer in self._spec.windowed_layers else context for layer in layers)

    def _link_s(self, stage: ShardMemory, num_tokens: int) -> float:
        hidden_bytes = num_tokens * self._spec.hidden_size * self._dtype_bytes
        seconds = 0.0
        if self._num_ranks > 1:
            num_sums = _SUMS_PER_LAYER * (stage.shard.end_layer - stage.shard.first_layer)
            sent = 2 * (self._num_ranks - 1) / self._num_ranks * hidden_bytes
            seconds += num_sums * self._message_s(sent, self._num_ranks <= self._num_on_node)
        if not stage.shard.is_last:
            node, following = (index // self._profile.devices_per_node for index in self._neighbours(stage))
            seconds += self._message_s(hidden_bytes, node == following)
        return seconds

    def _neighbours(self, stage: ShardMemory) -> Sequence[int]:
        return stage.shard.index, stage.shard.index + self._num_ranks

    def _message_s(self, num_bytes: float, is_in_node: bool) -> float:
        bandwidth = self._profile.link_bandwidth if is_in_node else self._profile.network_bandwidth
        return self._profile.link_latency_s + num_bytes / bandwidth


def _token_bytes(stage: ShardMemory) -> float:
    """Bytes of one token's keys and values in one layer."""
    return stage.kv.block_bytes(1) / stage.kv.num_layers


def _compute_dtype(spec: ModelSpec, config: ModelConfig) -> str:
    """What products are made in: 8 bits where inputs are rounded too."""
    schemes = [] if config.quantization is None else [config.quantization.for_loading.scheme]
    if spec.quantization is not None:
        schemes += [scheme for _targets, scheme in spec.quantization.groups if scheme is not None]
    if any(scheme.has_quantized_inputs for scheme in schemes):
        return "float8" if any(scheme.is_float for scheme in schemes) else "int8"
    return served_dtype(spec, config)
