"""The table of derived records against the transformers that is installed, and the reasons for what it leaves out."""

import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bench.derive_records import TABLE, derive_record, row_of
from bench.tiny_models import make_tiny, small_config
from serve_app.architectures.derived import DERIVED, REFUSED
from serve_app.architectures.lookup import ARCHITECTURES, EMBEDDERS, GENERATORS, why_not_served
from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.errors import ConfigError

SAMPLE = ("granite", "gpt_neox", "glm_moe_dsa", "cohere")


def config_only(directory: Path, config: dict[str, object]) -> Path:
    """A directory whose weights are not there to be read."""
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def test_every_type_that_transformers_generates_with_is_served_or_refused_by_a_reason() -> None:
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() <= ARCHITECTURES.keys() | REFUSED.keys()
    assert not DERIVED.keys() & REFUSED.keys()


def test_four_in_five_of_the_types_that_transformers_has_a_plan_for_are_served_whole_and_split() -> None:
    configs = {name: CONFIG_MAPPING[name] for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    planned = [name for name, one in configs.items() if one.base_model_pp_plan or one.base_model_tp_plan]
    served = [name for name in planned if name in GENERATORS and GENERATORS[name].tensor_cut is not None]
    assert len(served) >= 0.8 * len(planned)


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in sorted(DERIVED)]
)
def test_the_table_is_what_the_installed_transformers_gives(model_type: str) -> None:
    row = json.loads(TABLE.read_text())["records"][model_type]
    derived = json.loads(json.dumps(row_of(derive_record(CONFIG_MAPPING[model_type](), small_config(model_type)))))
    if "tensor_cut" not in row:  # the sweep has taken it out
        derived.pop("tensor_cut", None)
    assert row == derived


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mamba", "keep a state in place of each token's keys and values"),
        ("whisper", "has an encoder beside its decoder"),
        ("llava", "reads more than text"),
        ("bloom", "not behind transformers' attention interface"),
        ("bert", "does not generate; set task: embed"),
        ("my_own", "no class of transformers' that we know has it"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name_and_reason_before_weights_are_read(
    tmp_path: Path, model_type: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"model_type='{model_type}' in config.json is not supported: .*{reason}"):
        read_model_spec(config_only(tmp_path, {"model_type": model_type}))


def test_code_that_comes_with_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    config: dict[str, object] = {"model_type": "my_own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    with pytest.raises(ConfigError, match=r"needs code of its own \(auto_map\), which is never run"):
        read_model_spec(config_only(tmp_path, config))


def test_a_generator_asked_to_embed_says_what_it_does() -> None:
    assert why_not_served("gpt2", EMBEDDERS) == "it generates, and does not embed or classify yet; set task: generate"


def test_an_indexer_bounds_the_context_by_the_tokens_that_it_chooses(tmp_path: Path) -> None:
    directory = made(tmp_path, "deepseek_v32", index_topk=48)
    assert read_model_spec(directory).max_position_embeddings == 48


def test_latent_attention_is_cached_expanded(tmp_path: Path) -> None:
    spec = read_model_spec(made(tmp_path, "deepseek_v3", v_head_dim=12))
    assert (spec.num_kv_heads, spec.head_dim, spec.value_dim) == (4, 8 + 8, 12)


def test_the_cache_has_room_for_the_widest_kind_of_layers(tmp_path: Path) -> None:
    spec = read_model_spec(made(tmp_path, "gemma4_text"))  # 2 heads of 8, and 2 of 16 where attention is full
    assert (spec.num_kv_heads, spec.head_dim, spec.value_dim) == (2, 16, 16)
    spec = read_model_spec(made(tmp_path, "mimo_v2_flash"))  # twice the heads where a window slides
    assert spec.num_kv_heads == 4
    assert [one.num_kv_heads for one in spec.other_heads] == [2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size_per_layer_input": 16}, "hidden_size_per_layer_input=16 is not served for model_type=gemma4"),
        ({"layer_types": ["conv"] * 4}, "layer_types names 'conv', which is not served; give a model whose layers are"),
    ],
)
def test_parts_that_a_type_may_have_and_that_are_not_served_are_refused(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    directory = made(tmp_path, "gemma4_text")
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=expected):
        read_model_spec(directory)


def made(directory: Path, model_type: str, **changes: object) -> Path:
    """A tiny checkpoint of this type."""
    make_tiny(small_config(model_type, **changes), directory)
    return directory
