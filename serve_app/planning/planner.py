"""Which layers go on which shard, what that weighs, and what makes a split impossible."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from serve_app.architectures.lookup import GENERATORS, why_not_served
from serve_app.architectures.tensor_names import (
    is_before_layers,
    is_embedding,
    is_head,
    is_unused,
    layer_of,
)
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.rank_sizes import rank_heads, tensor_problems
from serve_app.config.engine import ParallelConfig
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.attention_problem import attention_problem
from serve_app.planning.layer_weights import weigh
from serve_app.planning.part_weights import ModelWeights
from serve_app.planning.stage_ends import stage_ends
from serve_app.types.dtypes import DTYPES, SERVED_DTYPES
from serve_app.types.shards import KvShape, LoadQuantization, ShardSpec


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """All shards of one model copy, ordered by ShardSpec.index."""

    num_stages: int
    num_ranks: int
    shards: list[ShardSpec]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One shard as a table shows it."""

    stage: int
    rank: int
    first_layer: int
    end_layer: int
    parameter_bytes: int  # in the served dtype
    kv_cache_tokens: int | None  # that fit; None: known only when the GPU's memory is


def plan_split(spec: ModelSpec, parallel: ParallelConfig) -> ShardPlan:
    """The shards of a split. Raises ConfigError for one that the model's layers do not allow."""
    return plan_shards(spec, parallel.pipeline, parallel.tensor, parallel.layers)


def plan_shards(spec: ModelSpec, pipeline: int, tensor: int, layers: Sequence[int] | None = None) -> ShardPlan:
    """Layers spread so that the heaviest stage is as light as possible, or as `layers` gives them to each stage.

    Raises ConfigError for too many stages, or other layers than the model has.
    """
    problems = _stage_problems(spec, pipeline, layers)
    if problems:
        raise ConfigError("\n".join(problems))
    ends = list(accumulate(layers)) if layers is not None else stage_ends(stage_weights(spec, pipeline), pipeline)
    begins = [0, *ends[:-1]]
    shards = [
        ShardSpec(stage, pipeline, rank, tensor, begins[stage], ends[stage])
        for stage in range(pipeline)
        for rank in range(tensor)
    ]
    return ShardPlan(pipeline, tensor, shards)


def check_split(spec: ModelSpec, config: ModelConfig) -> list[str]:
    """Every reason why this model cannot be served with these settings."""
    problems = _model_problems(spec, config) + tensor_problems(spec, config.parallel.tensor)
    problems += _stage_problems(spec, config.parallel.pipeline, config.parallel.layers)
    return problems or _cache_problems(spec, config)


def served_dtype(spec: ModelSpec, config: ModelConfig) -> str:
    """The dtype a model's weights and KV cache have when served."""
    return spec.dtype if config.dtype == "auto" else config.dtype


def served_max_model_len(spec: ModelSpec, config: ModelConfig) -> int:
    """Tokens of the longest sequence, the prompt included."""
    return config.max_model_len or spec.default_max_tokens or config.engine.max_num_batched_tokens


def kv_shape_on(shard: ShardSpec, spec: ModelSpec, dtype: str) -> KvShape:
    """What one token of a shard's KV cache is made of."""
    heads = rank_heads(spec, shard.num_ranks)
    num_layers = shard.end_layer - shard.first_layer
    return KvShape(num_layers, heads.num_kv_heads, heads.head_dim, DTYPES[dtype].num_bytes, heads.value_dim)


def num_kv_blocks(spec: ModelSpec, plan: ShardPlan, config: ModelConfig, kv_cache_bytes: int) -> int:
    """KV blocks that every shard can hold in `kv_cache_bytes` of its own."""
    return kv_cache_bytes // _largest_block_bytes(spec, plan, config)


def _largest_block_bytes(spec: ModelSpec, plan: ShardPlan, config: ModelConfig) -> int:
    dtype = served_dtype(spec, config)
    return max(kv_shape_on(shard, spec, dtype).block_bytes(config.engine.block_size) for shard in plan.shards)


def shard_parameter_bytes(
    spec: ModelSpec, shard: ShardSpec, dtype: str, quantization: LoadQuantization | None = None
) -> int:
    """Bytes of one shard's parameters in `dtype`."""
    return weigh(spec, dtype, quantization).bytes_on(shard)


def weigh_as_served(spec: ModelSpec, config: ModelConfig) -> ModelWeights:
    """What the model weighs by these settings, however it is split."""
    quantization = None if config.quantization is None else config.quantization.for_loading
    packs_head = config.device.type == "cpu" and config.engine.may_pack_head
    return weigh(spec, served_dtype(spec, config), quantization, packs_head=packs_head)


def describe_plan(spec: ModelSpec, plan: ShardPlan, config: ModelConfig) -> list[PlanRow]:
    """One row per shard."""
    cache_bytes, num_tokens = config.kv_cache_bytes, None
    if cache_bytes is not None:
        num_tokens = num_kv_blocks(spec, plan, config, cache_bytes) * config.engine.block_size
    weights = weigh_as_served(spec, config)
    return [
        PlanRow(
            shard.stage,
            shard.rank,
            shard.first_layer,
            shard.end_layer,
            weights.bytes_on(shard),
            num_tokens,
        )
        for shard in plan.shards
    ]


def format_plan(rows: Sequence[PlanRow], *, last_column: str = "kv tokens") -> str:
    """The rows as an aligned text table."""
    table = [("stage", "rank", "layers", "parameters", last_column)]
    for row in rows:
        tokens = "by memory" if row.kv_cache_tokens is None else str(row.kv_cache_tokens)
        layers = f"{row.first_layer}-{row.end_layer - 1}"
        table.append((str(row.stage), str(row.rank), layers, readable_bytes(row.parameter_bytes), tokens))
    return align(table)


def align(table: Sequence[tuple[str, ...]]) -> str:
    """Rows of one length as text, each cell at the right of its column."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table)


def _stage_problems(spec: ModelSpec, pipeline: int, layers: Sequence[int] | None) -> list[str]:
    if pipeline > spec.num_layers:
        return [
            f"parallel.pipeline={pipeline} is longer than the model's num_layers={spec.num_layers}; "
            f"use at most {spec.num_layers}"
        ]
    if layers is not None and sum(layers) != spec.num_layers:
        return [
            f"parallel.layers={list(layers)} are {sum(layers)} layers, and the model has num_layers={spec.num_layers}; "
            "let them add up to that"
        ]
    return []


def _model_problems(spec: ModelSpec, config: ModelConfig) -> list[str]:
    problems: list[str] = []
    if spec.model_type not in GENERATORS:
        reason = why_not_served(spec.model_type, GENERATORS)
        problems.append(f"model_type={spec.model_type!r} is not supported: {reason}")
    problems += quantization_problems(spec, config) + dtype_problems(spec, config)
    return problems + attention_problems(spec, config) + _context_problems(spec, config)


def attention_problems(spec: ModelSpec, config: ModelConfig) -> list[str]:
    """Why this model is not served with the attention that is asked for."""
    engine, dtype = config.engine, served_dtype(spec, config)
    problem = attention_problem(engine.attention, config.device.type, dtype, spec.head_kinds, engine.block_size)
    return [] if problem is None else [problem]


def dtype_problems(spec: ModelSpec, config: ModelConfig) -> list[str]:
    """Why this model is not served in its own dtype, or not by the kernel that is asked for."""
    if served_dtype(spec, config) == "float32" and config.engine.linear_kernel == "fbgemm":
        return ["engine.linear_kernel=fbgemm keeps weights in float16, and would round those of float32; use onednn"]
    if served_dtype(spec, config) == "float16" and config.engine.linear_kernel == "compiled":
        return ["engine.linear_kernel=compiled multiplies float32 and bfloat16, not float16; use onednn or fbgemm"]
    if served_dtype(spec, config) in SERVED_DTYPES:
        return []
    return [f"dtype=auto means {spec.dtype} here, which is not served; set dtype: {' or '.join(SERVED_DTYPES)}"]


def quantization_problems(spec: ModelSpec, config: ModelConfig) -> list[str]:
    """Why this model is not served quantized as it is, or as `config` says."""
    if config.quantization is None and spec.quantization is None:
        return []
    if spec.num_experts is not None:
        return [f"model_type={spec.model_type} has experts, which are not served quantized; give a dense model"]
    if config.quantization is None:
        return _order_problems(spec, config.parallel.tensor)
    if spec.quantization is not None:
        return [
            f"quantization: source={config.source} is quantized already ({spec.quantization.method}); remove it, or "
            "give the unquantized model"
        ]
    scheme = config.quantization.for_loading.scheme
    sizes = {"hidden_size": spec.hidden_size}
    heads, inner = spec.num_heads * spec.head_dim, spec.intermediate_size
    sizes[f"num_heads x head_dim / parallel.tensor={config.parallel.tensor}"] = heads // config.parallel.tensor
    if inner is not None:
        sizes[f"intermediate_size / parallel.tensor={config.parallel.tensor}"] = inner // config.parallel.tensor
    return [
        f"quantization.group_size={scheme.group_size} does not divide {name}={size}; use one that divides all of "
        f"{', '.join(str(one) for one in sizes.values())}"
        for name, size in sizes.items()
        if scheme.group_size is not None and size % scheme.group_size
    ][:1]


def _order_problems(spec: ModelSpec, tensor: int) -> list[str]:
    """A rank's share of the inputs is not a share of the groups where these have an order of their own."""
    if tensor == 1 or spec.quantization is None or not spec.quantization.has_input_order:
        return []
    return [
        f"parallel.tensor={tensor} cannot cut source={spec.source_dir}, whose inputs are in an order of their own "
        "(act-order); use parallel.pipeline"
    ]


def _context_problems(spec: ModelSpec, config: ModelConfig) -> list[str]:
    longest = spec.max_position_embeddings
    if config.max_model_len is not None and longest is not None and config.max_model_len > longest:
        return [
            f"max_model_len={config.max_model_len} is above the model's max_position_embeddings={longest}; "
            f"use at most {longest}"
        ]
    return []


def _cache_problems(spec: ModelSpec, config: ModelConfig) -> list[str]:
    plan = plan_split(spec, config.parallel)
    if config.kv_cache_bytes is None:
        return []
    num_tokens = num_kv_blocks(spec, plan, config, config.kv_cache_bytes) * config.engine.block_size
    if num_tokens >= (config.max_model_len or 1):
        return []
    needed = _largest_block_bytes(spec, plan, config)
    longest = -(-served_max_model_len(spec, config) // config.engine.block_size)
    return [
        f"engine.kv_cache_bytes={config.kv_cache_bytes} holds {num_tokens} tokens, max_model_len is "
        f"{served_max_model_len(spec, config)}: one block of {config.engine.block_size} tokens "
        f"takes {needed} bytes on the largest shard; use {needed} or more ({needed * longest} for one sequence of "
        f"{served_max_model_len(spec, config)} tokens)"
    ]


def stage_weights(spec: ModelSpec, pipeline: int) -> list[int]:
    """Bytes of each layer, the first and last ones with what surrounds them."""
    weights = [0] * spec.num_layers
    for name, tensor in spec.tensors.items():
        layer = layer_of(name)
        if is_unused(name) or (layer is not None and layer >= spec.num_layers):
            continue
        if layer is not None:
            weights[layer] += tensor.num_bytes
        elif is_before_layers(name):
            weights[0] += tensor.num_bytes
            if spec.is_tied and pipeline > 1 and is_embedding(name):
                weights[-1] += tensor.num_bytes
        elif not (spec.is_tied and is_head(name)):
            weights[-1] += tensor.num_bytes
    return weights


def readable_bytes(num_bytes: int) -> str:
    """A size for people."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{num_bytes} B"
