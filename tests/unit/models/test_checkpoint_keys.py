"""Which checkpoint tensors make up each parameter, for names old and new."""

from pathlib import Path

import pytest

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.models.checkpoint_keys import KeyMap, Source, _chunks, map_keys
from serve_app.models.transformers_model import TransformersStage, read_config, resolve_dtype
from serve_app.types.shards import ShardSpec
from tests.checkpoints import ARCHITECTURES, make_checkpoint
from tests.plain_driver import WHOLE

LAST_STAGE = ShardSpec(stage=1, num_stages=2, rank=0, num_ranks=1, first_layer=2, end_layer=4)


def stage_of(directory: Path, shard: ShardSpec = WHOLE) -> TransformersStage:
    config = read_config(directory)
    return TransformersStage(config, resolve_dtype(config, "auto"), shard)


def names_in(directory: Path) -> list[str]:
    return list(read_model_spec(directory).tensors)


@pytest.mark.parametrize("shard", [WHOLE, LAST_STAGE], ids=["whole", "last stage"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_its_sources_and_no_tensor_is_left_over(
    tmp_path: Path, name: str, shard: ShardSpec
) -> None:
    directory = make_checkpoint(name, tmp_path)
    stage = stage_of(directory, shard)
    key_map = map_keys(stage, names_in(directory))
    assert key_map.sources.keys() == stage.whole_state.keys()
    assert key_map.unused == []
    used = {source.tensor_name for sources in key_map.sources.values() for source in sources}
    assert used == set(names_in(directory))


def test_experts_are_stacked_by_their_numbers_and_gate_goes_before_up(tmp_path: Path) -> None:
    directory = make_checkpoint("mixtral", tmp_path, num_local_experts=12)  # 10 comes after 9, not after 1
    key_map = map_keys(stage_of(directory), names_in(directory))
    sources = key_map.sources["model.layers.1.mlp.experts.gate_up_proj"]
    prefix = "model.layers.1.block_sparse_moe.experts"
    by_place = sorted(sources, key=lambda source: (source.expert or 0, source.position))
    assert by_place == [
        Source(f"{prefix}.{expert}.{name}.weight", expert, position, join_dim=1)
        for expert in range(12)
        for position, name in enumerate(("w1", "w3"))
    ]
    down = key_map.sources["model.layers.1.mlp.experts.down_proj"]
    assert [source.expert for source in down] == list(range(12))
    assert {source.join_dim for source in down} == {None}


def test_a_tied_head_is_read_from_the_embedding_or_the_other_way_round(tmp_path: Path) -> None:
    directory = make_checkpoint("llama_tied", tmp_path)
    stage, names = stage_of(directory), names_in(directory)
    assert "lm_head.weight" not in names
    assert _tied(map_keys(stage, names)) == ("model.embed_tokens.weight",) * 2
    renamed = ["lm_head.weight" if name == "model.embed_tokens.weight" else name for name in names]
    assert _tied(map_keys(stage, renamed)) == ("lm_head.weight",) * 2


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("opt", "model."), ("llama", "model.")])
def test_names_without_the_base_models_prefix_are_understood(tmp_path: Path, name: str, prefix: str) -> None:
    directory = make_checkpoint(name, tmp_path)
    stage, names = stage_of(directory), names_in(directory)
    bare = [one.removeprefix(prefix) for one in names]
    assert bare != names
    key_map = map_keys(stage, bare)
    assert key_map.unused == []
    assert key_map.sources.keys() == stage.whole_state.keys()


def test_tensors_that_no_parameter_takes_are_listed(tmp_path: Path) -> None:
    directory = make_checkpoint("gpt2", tmp_path)
    names = [*names_in(directory), "transformer.h.0.attn.rotary", "vision.weight"]
    assert map_keys(stage_of(directory), names).unused == ["transformer.h.0.attn.rotary", "vision.weight"]


def _tied(key_map: KeyMap) -> tuple[str, ...]:
    return tuple(key_map.sources[name][0].tensor_name for name in ("model.embed_tokens.weight", "lm_head.weight"))


def test_a_tensor_that_holds_queries_keys_and_values_is_read_in_equal_parts() -> None:
    targets = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    assert _chunks("h.0.Wqkv.weight", "layers.0.self_attn.q_proj.weight", targets) == [
        (f"layers.0.{target}.weight", Source("h.0.Wqkv.weight", num_chunks=3, chunk=chunk))
        for chunk, target in enumerate(targets)
    ]
