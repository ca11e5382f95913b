"""Layers on shards by their bytes, and every reason why a split cannot be served."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.architectures.head_sizes import HeadSizes
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.quantized_modules import CheckpointQuantization
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.config.engine import DeviceConfig, EngineConfig, ParallelConfig
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.planner import (
    check_split,
    describe_plan,
    format_plan,
    kv_shape_on,
    num_kv_blocks,
    plan_shards,
    served_max_model_len,
    shard_parameter_bytes,
)
from serve_app.planning.splits import possible_splits
from serve_app.types.shards import ShardSpec


def tensor(*shape: int, dtype: str = "F32") -> TensorHeader:
    num_bytes = 4 if dtype == "F32" else 2
    for size in shape:
        num_bytes *= size
    return TensorHeader(Path("model.safetensors"), dtype, shape, num_bytes, offset_bytes=0)


def make_spec(
    layer_rows: list[int], embedding_rows: int = 0, head_rows: int = 0, is_tied: bool = False, **changes: object
) -> ModelSpec:
    """A llama whose layers are matrices [rows, 8] float32: 32 bytes a row."""
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": tensor(rows, 8) for layer, rows in enumerate(layer_rows)}
    tensors["model.embed_tokens.weight"] = tensor(embedding_rows, 8)
    tensors["model.norm.weight"] = tensor(8)
    if not is_tied:
        tensors["lm_head.weight"] = tensor(head_rows, 8)
    values: dict[str, object] = {
        "source_dir": Path("model"),
        "model_type": "llama",
        "architectures": (),
        "num_layers": len(layer_rows),
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 16,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_experts": None,
        "vocab_size": embedding_rows,
        "max_position_embeddings": 2048,
        "unstretched_positions": None,
        "is_tied": is_tied,
        "dtype": "float32",
        "sliding_window": None,
        "quantization": None,
        "tensors": tensors,
        "num_bytes": sum(header.num_bytes for header in tensors.values()),
    }
    return ModelSpec(**(values | changes))  # type: ignore[arg-type]


def make_config(pipeline: int = 1, num_ranks: int = 1, **changes: object) -> ModelConfig:
    parallel = ParallelConfig(pipeline=pipeline, tensor=num_ranks)
    return ModelConfig.model_validate({"name": "a", "source": "b", "parallel": parallel} | changes)


def stage_layers(spec: ModelSpec, pipeline: int) -> list[int]:
    return [shard.end_layer - shard.first_layer for shard in plan_shards(spec, pipeline, 1).shards]


def test_equal_layers_are_spread_evenly() -> None:
    assert stage_layers(make_spec([4] * 8), 4) == [2, 2, 2, 2]
    assert sorted(stage_layers(make_spec([4] * 8), 3)) == [2, 3, 3]
    assert stage_layers(make_spec([4] * 8), 1) == [8]


def test_a_heavy_embedding_takes_layers_from_the_first_stage() -> None:
    assert stage_layers(make_spec([4] * 8, embedding_rows=16), 2) == [2, 6]


def test_a_heavy_head_takes_layers_from_the_last_stage() -> None:
    assert stage_layers(make_spec([4] * 8, head_rows=16), 2) == [6, 2]


def test_a_tied_head_weighs_on_both_ends() -> None:
    assert stage_layers(make_spec([4] * 9, embedding_rows=12, is_tied=True), 3) == [2, 5, 2]


def test_a_heavy_layer_gets_a_stage_of_its_own() -> None:
    assert stage_layers(make_spec([1, 1, 50, 1, 1]), 3) == [2, 1, 2]


def test_shards_are_ordered_by_index_and_cover_all_layers_once() -> None:
    plan = plan_shards(make_spec([4] * 5), 2, 2)
    assert [shard.index for shard in plan.shards] == [0, 1, 2, 3]
    assert [(shard.stage, shard.rank) for shard in plan.shards] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert plan.shards[0].first_layer == 0
    assert plan.shards[1].end_layer == plan.shards[2].first_layer
    assert plan.shards[3].end_layer == 5


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.integers(0, 40), st.integers(0, 40), st.data())
def test_no_other_split_has_a_lighter_heaviest_stage(
    rows: list[int], first: int, last: int, data: st.DataObject
) -> None:
    pipeline = data.draw(st.integers(1, len(rows)))
    spec = make_spec(rows, embedding_rows=first, head_rows=last)
    weights = [32 * row for row in rows]
    weights[0] += 32 * first
    weights[-1] += 32 * last + 32
    least = min(
        max(sum(weights[begin:end]) for begin, end in itertools.pairwise([0, *cuts, len(rows)]))
        for cuts in itertools.combinations(range(1, len(rows)), pipeline - 1)
    )
    shards = plan_shards(spec, pipeline, 1).shards
    assert max(sum(weights[shard.first_layer : shard.end_layer]) for shard in shards) == least
    assert all(shard.end_layer > shard.first_layer for shard in shards)


def test_a_long_model_is_planned_at_once_and_always_alike() -> None:
    rows = [random.Random(0).randrange(1, 100) for _ in range(200)]
    assert plan_shards(make_spec(rows), 16, 8) == plan_shards(make_spec(rows), 16, 8)


def test_a_pipeline_longer_than_the_layers_is_refused() -> None:
    expected = "parallel.pipeline=9 is longer than the model's num_layers=8; use at most 8"
    with pytest.raises(ConfigError, match=expected):
        plan_shards(make_spec([4] * 8), 9, 1)
    assert check_split(make_spec([4] * 8), make_config(pipeline=9)) == [expected]


def test_a_tensor_size_must_divide_heads_and_intermediate_size_and_fit_kv_heads() -> None:
    spec = make_spec([4] * 8, num_kv_heads=8)
    assert check_split(spec, make_config(num_ranks=3)) == [
        "parallel.tensor=3 does not divide num_heads=8; use 1, 2, 4 or 8",
        "parallel.tensor=3 does not divide intermediate_size=16; use 1, 2, 4 or 8",
        "parallel.tensor=3 neither divides num_kv_heads=8 nor is a multiple of it; use 1, 2, 4 or 8",
    ]


def test_the_way_out_names_divisors_and_multiples_of_kv_heads() -> None:
    spec = make_spec([4] * 8, num_heads=24, num_kv_heads=4, intermediate_size=48)
    assert check_split(spec, make_config(num_ranks=6)) == [
        "parallel.tensor=6 neither divides num_kv_heads=4 nor is a multiple of it; use 1, 2, 4, 8, 12 or 24"
    ]
    of_two_kinds = replace(spec, other_heads=(HeadSizes(24, 3, 16, 16),))
    assert check_split(of_two_kinds, make_config(num_ranks=4)) == [
        "parallel.tensor=4 neither divides num_kv_heads of other layers=3 nor is a multiple of it; use 1, 12 or 24"
    ]


def test_every_kind_of_layers_has_to_fit_the_ranks() -> None:
    others = tuple(HeadSizes(8, num_kv_heads, 16, 16) for num_kv_heads in (4, 3))
    assert check_split(make_spec([4] * 8, num_kv_heads=8, other_heads=others), make_config(num_ranks=2)) == [
        "parallel.tensor=2 neither divides num_kv_heads of other layers (2)=3 nor is a multiple of it; use 1"
    ]


@pytest.mark.parametrize(("num_kv_heads", "num_ranks", "num_held"), [(1, 2, 1), (1, 8, 1), (2, 8, 1), (4, 2, 2)])
def test_a_rank_holds_one_kv_head_where_ranks_are_more(num_kv_heads: int, num_ranks: int, num_held: int) -> None:
    spec = make_spec([4] * 8, num_kv_heads=num_kv_heads)
    assert check_split(spec, make_config(num_ranks=num_ranks)) == []
    for shard in plan_shards(spec, 1, num_ranks).shards:
        assert kv_shape_on(shard, spec, "float32").num_heads == num_held


def test_the_cache_of_a_rank_has_room_for_the_widest_layers_that_it_holds() -> None:
    spec = make_spec([4] * 8, num_kv_heads=8, head_dim=16, other_heads=(HeadSizes(8, 2, 32, 32),))
    shapes = [kv_shape_on(plan_shards(spec, 1, num_ranks).shards[-1], spec, "float32") for num_ranks in (1, 4, 8)]
    assert [(one.num_heads, one.head_dim) for one in shapes] == [(8, 16), (2, 16), (1, 32)]


def test_ranks_of_a_family_that_cannot_be_cut_are_refused() -> None:
    problems = check_split(make_spec([4] * 8, model_type="distilbert"), make_config(num_ranks=2))
    assert problems[-1] == "parallel.tensor=2 cannot cut model_type=distilbert; use parallel.pipeline"
    problems = check_split(make_spec([4] * 8, model_type="distilbert"), make_config(pipeline=2))
    assert not any("parallel" in problem for problem in problems)


def test_a_vocabulary_need_not_divide() -> None:
    assert check_split(make_spec([4] * 8, vocab_size=63), make_config(num_ranks=4)) == []


def test_a_max_model_len_above_the_models_is_refused() -> None:
    (problem,) = check_split(make_spec([4] * 8), make_config(max_model_len=4096))
    assert problem == "max_model_len=4096 is above the model's max_position_embeddings=2048; use at most 2048"
    assert check_split(make_spec([4] * 8), make_config(max_model_len=2048)) == []


def test_lengths_of_other_frequencies_are_served_where_they_are_asked_for() -> None:
    longrope = make_spec([4], unstretched_positions=512)
    assert served_max_model_len(longrope, make_config()) == 512
    assert served_max_model_len(longrope, make_config(max_model_len=2048)) == 2048
    assert check_split(longrope, make_config(max_model_len=2048)) == []
    (problem,) = check_split(longrope, make_config(max_model_len=2049))
    assert problem == "max_model_len=2049 is above the model's max_position_embeddings=2048; use at most 2048"


def test_quantizations_that_cannot_be_and_odd_types_are_refused() -> None:
    stored = CheckpointQuantization("gptq", (), ())
    wanted = make_config(quantization={"scheme": "int4", "group_size": 48})
    assert check_split(make_spec([4], quantization=stored), make_config()) == []
    (problem,) = check_split(make_spec([4], quantization=stored), wanted)
    assert "source=b is quantized already (gptq); remove it" in problem
    ordered = make_spec([4], quantization=CheckpointQuantization("gptq", (), (), has_input_order=True))
    assert check_split(ordered, make_config(parallel={"pipeline": 1})) == []
    (problem,) = check_split(ordered, make_config(parallel={"tensor": 2}))
    assert "parallel.tensor=2 cannot cut source=" in problem
    (problem,) = check_split(make_spec([4]), wanted)
    assert problem.startswith("quantization.group_size=48 does not divide hidden_size=")
    (problem,) = check_split(make_spec([4], num_experts=8), make_config(quantization={"scheme": "int8"}))
    assert "has experts, which are not served quantized" in problem
    (problem,) = check_split(make_spec([4], model_type="bert"), make_config())
    assert problem.startswith("model_type='bert' is not supported: it does not generate; set task: embed")
    (problem,) = check_split(make_spec([4], dtype="float64"), make_config())
    assert problem == "dtype=auto means float64 here, which is not served; set dtype: float32 or bfloat16 or float16"
    assert check_split(make_spec([4], dtype="float64"), make_config(dtype="float32")) == []


def test_a_cache_that_does_not_hold_the_longest_sequence_is_refused() -> None:
    # 4 layers on the larger shard x 16 tokens x 4 kv heads x 16 x float32, keys and values
    (problem,) = check_split(make_spec([4] * 8), make_config(engine=EngineConfig(kv_cache_bytes=1)))
    assert problem.startswith("engine.kv_cache_bytes=1 holds 0 tokens, max_model_len is ")
    assert "one block of 16 tokens takes 65536 bytes" in problem
    one_block = EngineConfig(kv_cache_bytes=65535)
    (problem,) = check_split(make_spec([4] * 8), make_config(pipeline=2, engine=one_block, max_model_len=17))
    assert problem.startswith("engine.kv_cache_bytes=65535 holds 16 tokens, max_model_len is 17: ")
    assert check_split(make_spec([4] * 8), make_config(pipeline=2, engine=one_block, max_model_len=16)) == []


def test_all_problems_of_a_split_come_at_once() -> None:
    assert len(check_split(make_spec([4] * 8), make_config(pipeline=9, num_ranks=3, max_model_len=9999))) == 5


def test_a_kv_block_holds_keys_and_values_of_the_shards_heads() -> None:
    spec = make_spec([4] * 8)
    shard = ShardSpec(stage=0, num_stages=2, rank=0, num_ranks=2, first_layer=0, end_layer=3)
    assert kv_shape_on(shard, spec, "bfloat16").block_bytes(16) == 2 * 3 * 16 * 2 * 16 * 2
    plan = plan_shards(spec, 2, 2)
    assert num_kv_blocks(spec, plan, make_config(dtype="bfloat16"), 8 * 2 * 4 * 16 * 2 * 16 * 2) == 8


def test_parameters_of_the_stages_sum_to_the_model_and_a_tied_head() -> None:
    spec = make_spec([4, 5, 6, 7], embedding_rows=10, is_tied=True)
    stages = [shard_parameter_bytes(spec, shard, "float32") for shard in plan_shards(spec, 2, 1).shards]
    assert sum(stages) == spec.num_bytes + 10 * 32
    (whole,) = plan_shards(spec, 1, 1).shards
    assert shard_parameter_bytes(spec, whole, "float32") == spec.num_bytes
    assert shard_parameter_bytes(spec, whole, "bfloat16") == spec.num_bytes // 2


def test_a_tensor_rank_holds_its_part_of_the_matrices_and_all_of_the_rest() -> None:
    spec = make_spec([8], embedding_rows=4, head_rows=4)
    for shard in plan_shards(spec, 1, 2).shards:
        assert shard_parameter_bytes(spec, shard, "float32") == (8 * 32 + 4 * 32 + 4 * 32) // 2 + 32


def test_unused_tensors_weigh_nothing() -> None:
    spec = make_spec([4, 4])
    spec.tensors["vision_tower.encoder.layers.0.weight"] = tensor(1000, 8)
    spec.tensors["model.layers.7.mlp.up_proj.weight"] = tensor(1000, 8)
    assert stage_layers(spec, 2) == [1, 1]
    shards = plan_shards(spec, 2, 1).shards
    assert sum(shard_parameter_bytes(spec, shard, "float32") for shard in shards) == make_spec([4, 4]).num_bytes


def test_the_table_has_a_line_per_shard() -> None:
    spec = make_spec([4096] * 4)
    rows = describe_plan(spec, plan_shards(spec, 2, 2), make_config(engine=EngineConfig(kv_cache_bytes=2**20)))
    assert format_plan(rows).splitlines() == [
        "stage  rank  layers  parameters  kv tokens",
        "    0     0     0-1   128.0 KiB       2048",
        "    0     1     0-1   128.0 KiB       2048",
        "    1     0     2-3   128.0 KiB       2048",
        "    1     1     2-3   128.0 KiB       2048",
    ]
    on_gpu = make_config(device=DeviceConfig(type="cuda"))
    assert describe_plan(spec, plan_shards(spec, 1, 1), on_gpu)[0].kv_cache_tokens is None
    assert format_plan(describe_plan(spec, plan_shards(spec, 1, 1), on_gpu)).endswith("by memory")


@pytest.mark.parametrize("name", ["triton", "varlen"])
def test_an_attention_of_gpus_is_refused_on_cpu(name: str) -> None:
    (problem,) = check_split(make_spec([4] * 8), make_config(engine={"attention": name}))
    assert problem == f"engine.attention={name} is for device.type=cuda; use reference or padded, or remove it"


def test_an_attention_that_does_not_serve_the_model_is_refused_before_it_is_loaded() -> None:
    config = make_config(device={"type": "cuda"}, engine={"attention": "varlen"}, dtype="bfloat16")
    (problem,) = check_split(make_spec([4] * 8), config)
    assert "engine.block_size=16 is no multiple of it; set block_size: 256" in problem
    served = make_config(device={"type": "cuda"}, engine={"attention": "varlen", "block_size": 256}, dtype="bfloat16")
    assert check_split(make_spec([4] * 8), served) == []
    (problem,) = check_split(make_spec([4] * 8, other_heads=(HeadSizes(8, 1, 512, 512),)), served)
    assert "not 512 and 512; use triton" in problem


def test_of_as_many_devices_splits_whose_ranks_share_key_value_heads_are_not_the_only_ones() -> None:
    spec = make_spec([4] * 8, num_kv_heads=2)
    found = [(one.pipeline, one.tensor) for one in possible_splits(spec, make_config(), 8, 8)]
    assert found == [(1, 1), (1, 2), (3, 1), (1, 4), (2, 2), (5, 1), (3, 2), (7, 1), (1, 8), (2, 4), (4, 2)]
