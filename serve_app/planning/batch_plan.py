"""A model that is done with an entry after one step, planned on its devices: encoders, classifiers, any nn.Module.

An encoder's step is a roofline as a generator's is. Of a module only its parameters are known without its class: each
matrix is taken to be multiplied by once for an entry, and its bytes to lie evenly on its stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.checkpoints.encoder_spec import EncoderSpec
from serve_app.checkpoints.module_spec import ModuleSpec
from serve_app.config.model import ModelConfig
from serve_app.planning.activation_bytes import layer_activation_bytes
from serve_app.planning.device_profiles import DeviceProfile, PlannedDevice
from serve_app.planning.layer_weights import weigh_encoder
from serve_app.planning.memory_plan import MemoryPlan, ShardMemory, device_shares
from serve_app.planning.part_weights import ModelWeights, PartWeights
from serve_app.planning.planner import kv_shape_on, readable_bytes, served_dtype
from serve_app.planning.reservations import copy_bundles
from serve_app.planning.served_model import BatchModelPlan
from serve_app.planning.stage_time import Batch, StageTimes
from serve_app.types.dtypes import DTYPES, DTYPES_BY_CODE, SERVED_DTYPES
from serve_app.types.plans import EntryRates
from serve_app.types.shards import KvShape, LoadQuantization, ShardSpec

TEXT_TOKENS = 128  # of each text in the prediction, if the model has room for as many
_NO_CACHE = KvShape(0, 0, 0, 0)
_SCALE_BYTES = 4  # of each output of a matrix that is quantized while it is loaded


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One such model on its devices."""

    config: ModelConfig
    kind: str  # model type or class, for people
    dtype: str
    device: PlannedDevice
    num_replicas: int  # that it begins with
    is_first: bool  # of the models of its application, which share their shards: what is reserved counts once
    memory: MemoryPlan
    rates: EntryRates
    problems: list[str]  # empty: it fits, and can be served
    notes: list[str]  # what the numbers leave out

    def device_of(self, stage: int) -> PlannedDevice:
        """What a stage is on."""
        return self.memory.stage_devices[stage] if self.memory.stage_devices else self.device

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each replica reserves with Ray; nothing for a model that shares another's shards."""
        return copy_bundles(self.config.device, self.config.parallel) if self.is_first else []


def plan_batch(
    model: BatchModelPlan,
    config: ModelConfig,
    device: PlannedDevice,
    num_replicas: int,
    stage_devices: Sequence[PlannedDevice] = (),
    *,
    is_first: bool = True,
) -> BatchPlan:
    """The model as `config` splits it, on devices of a kind, or on one of its own for each stage."""
    spec = model.spec
    if isinstance(spec, EncoderSpec):
        kind, dtype, notes = spec.spec.model_type, served_dtype(spec.spec, config), list[str]()
        memory = _encoder_memory(spec, config, stage_devices or [device], model.shards)
        rates = _encoder_rates(spec, config, device.profile, memory)
    else:
        kind, dtype = spec.architecture, config.dtype
        notes = [
            "note: each matrix is taken to be multiplied by once for an entry; a layer that runs again takes longer"
        ]
        if len(model.shards) > 1:
            notes.append(
                "note: which parts are on which stage its class says where it is loaded; bytes are shown evenly"
            )
        weights = _module_weights(spec, config)
        memory = _memory(config, stage_devices or [device], model.shards, weights, [0] * len(model.shards))
        rates = _module_rates(spec, config, _slowest(stage_devices or [device]), weights)
    problems = [*model.problems, *_room_problems(config, memory, device)]
    return BatchPlan(config, kind, dtype, device, num_replicas, is_first, memory, rates, problems, notes)


def _encoder_memory(
    encoder: EncoderSpec, config: ModelConfig, devices: Sequence[PlannedDevice], shards: Sequence[ShardSpec]
) -> MemoryPlan:
    spec, dtype = encoder.spec, served_dtype(encoder.spec, config)
    weights = weigh_encoder(spec, dtype, _quantization(config), has_pooler=encoder.embedding is None)
    activations = []
    for shard in shards:
        num_heads = spec.num_heads // shard.num_ranks
        shape = kv_shape_on(shard, spec, dtype)
        activations.append(layer_activation_bytes(spec, shard, shape, num_heads, config.engine.max_num_batched_tokens))
    return _memory(config, devices, shards, weights, activations)


def _memory(
    config: ModelConfig,
    devices: Sequence[PlannedDevice],
    shards: Sequence[ShardSpec],
    weights: ModelWeights,
    activations: Sequence[int],
) -> MemoryPlan:
    """devices: one for all shards, or the one of each stage."""
    shares = [device_shares(config, one.profile, one.memory_bytes, len(shards), utilization=1.0) for one in devices]
    is_uneven = len(devices) > 1
    profiles = [devices[shard.stage if is_uneven else 0].profile for shard in shards]
    return MemoryPlan(
        [
            ShardMemory(shard, 0, _NO_CACHE, _bytes_on(weights, shard), 0, num_bytes, profile.reserve)
            for shard, num_bytes, profile in zip(shards, activations, profiles, strict=True)
        ],
        weights,
        0,
        config.engine.block_size,
        0,
        config.engine.max_num_seqs,
        devices[0].memory_bytes,
        shares[0].of_device,
        shares[0].num_on_device,
        tuple(devices) if is_uneven else (),
        tuple(share.of_one for share in shares) if is_uneven else (),
    )


def _slowest(devices: Sequence[PlannedDevice]) -> DeviceProfile:
    return min((device.profile for device in devices), key=lambda profile: profile.read_rate)


def _bytes_on(weights: ModelWeights, shard: ShardSpec) -> int:
    """Of a module's stage its even part."""
    return weights.bytes_on(shard) if weights.layers else weights.before.whole_bytes // shard.num_stages


def _encoder_rates(spec: EncoderSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> EntryRates:
    length = min(TEXT_TOKENS, spec.max_tokens)
    num_texts = max(1, min(config.engine.max_num_batched_tokens // length, config.engine.max_num_seqs))
    shaped = [
        replace(
            one, num_heads=spec.spec.num_heads // one.shard.num_ranks, kv=kv_shape_on(one.shard, spec.spec, "float32")
        )
        for one in memory.shards
    ]
    stages = StageTimes(spec.spec, config, profile, replace(memory, shards=shaped))
    context = length // 2 if spec.is_causal else length  # that a token sees
    alone = stages.of(Batch(length, 0, context), is_full=False)
    full = stages.of(Batch(length * num_texts, 0, context), is_full=len(alone) > 1)
    slowest = max(full, key=lambda one: one.total_s)
    return EntryRates(length, num_texts, num_texts / slowest.total_s, sum(one.total_s for one in alone), slowest.bound)


def _module_weights(spec: ModuleSpec, config: ModelConfig) -> ModelWeights:
    """All parameters as one part; layers are not known."""
    quantization, num_bytes, num_products = _quantization(config), 0, 0
    for tensor in spec.tensors.values():
        is_matrix = len(tensor.shape) > 1
        num_products += tensor.num_elements if is_matrix else 0
        if quantization is not None and len(tensor.shape) == 2 and DTYPES_BY_CODE[tensor.dtype].is_plain_float:
            num_bytes += tensor.num_elements * quantization.scheme.bits // 8 + _SCALE_BYTES * tensor.shape[0]
        elif DTYPES_BY_CODE[tensor.dtype].is_plain_float and config.dtype in SERVED_DTYPES:
            num_bytes += tensor.num_elements * DTYPES[config.dtype].num_bytes
        else:
            num_bytes += tensor.num_bytes
    whole = PartWeights(whole_bytes=num_bytes, num_products=num_products)
    return ModelWeights((), whole, PartWeights(), PartWeights())


def _module_rates(spec: ModuleSpec, config: ModelConfig, profile: DeviceProfile, weights: ModelWeights) -> EntryRates:
    """Of stages that are all as long."""
    part, dtype = weights.before, config.dtype if config.dtype in SERVED_DTYPES else "float32"
    num_stages, rows = config.parallel.pipeline, config.engine.max_num_seqs
    is_sharing = profile.type == "cpu" and num_stages > 1  # stages of a node share what it has
    read_s = part.whole_bytes / profile.read_rate
    product_s = 2 * part.num_products / profile.rate(dtype)
    overhead_s = len(spec.tensors) * profile.layer_overhead_s
    step_s = max(read_s, rows * product_s) + overhead_s
    is_computing = rows * product_s > read_s
    return EntryRates(
        None,
        rows,
        rows / (step_s if is_sharing else step_s / num_stages),
        max(read_s, product_s) + overhead_s,
        "compute" if is_computing else "memory",
    )


def _quantization(config: ModelConfig) -> LoadQuantization | None:
    return None if config.quantization is None else config.quantization.for_loading


def _room_problems(config: ModelConfig, memory: MemoryPlan, device: PlannedDevice) -> list[str]:
    if not memory.missing_bytes:
        return []
    fullest = max(memory.shards, key=lambda one: one.total_bytes - memory.share_of(one.shard))
    if memory.stage_devices:
        device = memory.stage_devices[fullest.shard.stage]
    share = readable_bytes(memory.share_of(fullest.shard))
    return [
        f"{config.name} does not fit: stage {fullest.shard.stage} rank {fullest.shard.rank} takes weights "
        f"{readable_bytes(fullest.weights_bytes)}, activations {readable_bytes(fullest.activation_bytes)}, reserve "
        f"{readable_bytes(fullest.reserve_bytes)}, and {share} of {device.name} are "
        f"{readable_bytes(memory.missing_bytes)} too little; take more stages, a lower engine.max_num_batched_tokens, "
        "quantization: {scheme: int8}, or a device with more memory"
    ]
