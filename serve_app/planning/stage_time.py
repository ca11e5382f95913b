"""How long a stage takes for a step: it reads and computes, whichever takes longer, then sends.

Attention and the matrices of each layer follow each other, so that each of them takes the longer of its own two.
(Roofline model: Williams, Waterman, Patterson, doi:10.1145/1498765.1498785.) A step reads all weights of a stage but
the embedding; of experts those that its tokens go to, taken to be drawn evenly.
"""

from dataclasses import dataclass

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import DeviceProfile
from serve_app.planning.memory_plan import MemoryPlan, ShardMemory
from serve_app.planning.part_weights import PartWeights
from serve_app.planning.planner import served_dtype
from serve_app.types.dtypes import DTYPES

_SUMS_PER_LAYER = 2  # over tensor ranks: after attention and after the MLP


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step computes."""

    num_tokens: int
    num_sequences: int  # each of which draws a token
    context_tokens: int  # that each of them looks back at


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a stage in one step."""

    read_s: float
    compute_s: float
    link_s: float
    overhead_s: float
    work_s: float  # reading and computing, of what is done one after the other the longer

    @property
    def total_s(self) -> float:
        """From beginning to end."""
        return self.work_s + self.link_s + self.overhead_s

    @property
    def bound(self) -> str:
        """What it mostly waits for."""
        parts = {"memory": self.read_s, "compute": self.compute_s, "links": self.link_s, "overhead": self.overhead_s}
        return max(parts, key=lambda name: parts[name])


class StageTimes:
    """The stages of one copy of a model on its devices."""

    def __init__(self, spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> None:
        self._spec = spec
        self._profile = profile
        self._weights = memory.weights
        self._num_ranks = config.parallel.tensor
        self._stages = memory.shards[:: self._num_ranks]
        self._stage_profiles = [one.profile for one in memory.stage_devices] or [profile] * len(self._stages)
        self._num_on_node = min(len(memory.shards), profile.devices_per_node)
        self._stored_dtype = served_dtype(spec, config)  # of hidden states, keys and values
        self._dtype_bytes = DTYPES[self._stored_dtype].num_bytes
        self._dtype = _compute_dtype(spec, config)
        chosen, num_experts = spec.experts_per_token, spec.num_experts
        self._expert_share = 1.0 if chosen is None or num_experts is None else min(1.0, chosen / num_experts)

    def of(self, batch: Batch, *, is_full: bool) -> list[StepTime]:
        """Of each stage; is_full: all stages have steps at the same time."""
        share = 1.0
        if self._profile.type == "cpu":  # shards of a node share what it has
            share = 1 / (self._num_on_node if is_full else min(self._num_ranks, self._num_on_node))
        return [self._of_stage(stage, batch, share) for stage in self._stages]

    def _of_stage(self, stage: ShardMemory, batch: Batch, share: float) -> StepTime:
        profile, shard = self._stage_profiles[stage.shard.stage], stage.shard
        read_s, compute_s = self._attention_s(profile, stage, batch)
        work_s = max(read_s, compute_s)
        parts = [(part, batch.num_tokens) for part in self._weights.layers[shard.first_layer : shard.end_layer]]
        head = self._weights.head_on(shard)
        if head is not None:
            parts.append((head, batch.num_sequences))
        for part, rows in parts:
            part_read_s, part_compute_s = self._read_s(profile, part, rows), self._compute_s(profile, part, rows)
            read_s, compute_s = read_s + part_read_s, compute_s + part_compute_s
            work_s += max(part_read_s, part_compute_s)
        num_layers = shard.end_layer - shard.first_layer
        overhead_s = num_layers * (profile.layer_overhead_s + batch.num_sequences * profile.sequence_overhead_s)
        link_s = self._link_s(stage, batch.num_tokens)
        return StepTime(read_s / share, compute_s / share, link_s, overhead_s, work_s / share)

    def _attention_s(self, profile: DeviceProfile, stage: ShardMemory, batch: Batch) -> tuple[float, float]:
        """To read the keys and values of all sequences, and to compute with them."""
        num_bytes = batch.num_sequences * self._context_bytes(stage, batch.context_tokens)
        tokens_each = batch.num_tokens / max(1, batch.num_sequences)  # an encoder has none that keep keys and values
        num_queries = tokens_each * stage.num_heads / stage.kv.num_heads
        measured_s = [profile.attention_s(self._stored_dtype, rows, num_bytes) for rows in (1, num_queries)]
        products = batch.num_tokens * self._attention_products(stage, batch.context_tokens)
        read_s, compute_s = num_bytes / profile.read_rate, 2 * products / profile.rate(self._dtype)
        return measured_s[0] or read_s, measured_s[1] or compute_s

    def _read_s(self, profile: DeviceProfile, part: PartWeights, rows: int) -> float:
        num_bytes = self._read_bytes(part, rows)
        measured_s = profile.weights_s(self._dtype, 1, num_bytes)
        return num_bytes / profile.read_rate if measured_s is None else measured_s

    def _compute_s(self, profile: DeviceProfile, part: PartWeights, rows: int) -> float:
        measured_s = profile.weights_s(self._dtype, rows, self._read_bytes(part, rows))
        if measured_s is not None and not part.expert_bytes:
            return measured_s
        return 2 * rows * part.products_on_rank(self._num_ranks, self._expert_share) / profile.rate(self._dtype)

    def _read_bytes(self, part: PartWeights, rows: int) -> float:
        """Of one rank."""
        share_of_experts = 1 - (1 - self._expert_share) ** rows
        return part.on_rank(self._num_ranks) - part.expert_bytes / self._num_ranks * (1 - share_of_experts)

    def _attention_products(self, stage: ShardMemory, context: int) -> float:
        value_dim = stage.kv.value_dim or stage.kv.head_dim
        return self._seen(stage, context) * stage.num_heads * (stage.kv.head_dim + value_dim)

    def _context_bytes(self, stage: ShardMemory, context: int) -> float:
        """Keys and values that a sequence reads."""
        return self._seen(stage, context) * stage.kv.block_bytes(1) / stage.kv.num_layers

    def _seen(self, stage: ShardMemory, context: int) -> int:
        """Tokens that a sequence looks back at, over all layers of a stage."""
        window = min(context, self._spec.sliding_window or context)
        layers = range(stage.shard.first_layer, stage.shard.end_layer)
        return sum(window if layer in self._spec.windowed_layers else context for layer in layers)

    def _link_s(self, stage: ShardMemory, num_tokens: int) -> float:
        hidden_bytes = num_tokens * self._spec.hidden_size * self._dtype_bytes
        profile = self._stage_profiles[stage.shard.stage]
        seconds, per_node = 0.0, profile.devices_per_node
        if self._num_ranks > 1:
            num_sums = _SUMS_PER_LAYER * (stage.shard.end_layer - stage.shard.first_layer)
            sent = 2 * (self._num_ranks - 1) / self._num_ranks * hidden_bytes
            seconds += num_sums * _message_s(profile, sent, is_in_node=self._num_ranks <= per_node)
        if not stage.shard.is_last:
            index = stage.shard.index
            is_in_node = index // per_node == (index + self._num_ranks) // per_node
            is_in_node = is_in_node and profile is self._stage_profiles[stage.shard.stage + 1]
            seconds += _message_s(profile, hidden_bytes, is_in_node=is_in_node)
        return seconds


def _message_s(profile: DeviceProfile, num_bytes: float, *, is_in_node: bool) -> float:
    bandwidth = profile.link_bandwidth if is_in_node else profile.network_bandwidth
    return profile.link_latency_s + num_bytes / bandwidth


def _compute_dtype(spec: ModelSpec, config: ModelConfig) -> str:
    """What products are made in: 8 bits where inputs are rounded too."""
    schemes = [] if config.quantization is None else [config.quantization.for_loading.scheme]
    if spec.quantization is not None:
        schemes += [scheme for _targets, scheme in spec.quantization.groups if scheme is not None]
    if any(scheme.has_quantized_inputs for scheme in schemes):
        return "float8" if any(scheme.is_float for scheme in schemes) else "int8"
    return served_dtype(spec, config)
