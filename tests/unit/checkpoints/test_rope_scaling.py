"""How config.json stretches rotary positions."""

import pytest
from transformers import CONFIG_MAPPING

from serve_app.architectures.lookup import GENERATORS
from serve_app.checkpoints.rope_scaling import RopeLimit, rope_limit, scaled_max_positions

ORIGINAL = "original_max_position_embeddings"
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def test_only_yarn_lengthens_a_model() -> None:
    rope = {"factor": 4.0, ORIGINAL: 1024}
    assert scaled_max_positions(GENERATORS["llama"], {"rope_parameters": rope | {"rope_type": "yarn"}}, 2048) == 4096
    assert scaled_max_positions(GENERATORS["qwen2"], {"rope_scaling": {"factor": 4.0, "type": "yarn"}}, 2048) == 8192
    assert scaled_max_positions(GENERATORS["llama"], {"rope_parameters": rope | {"rope_type": "llama3"}}, 2048) == 2048
    assert scaled_max_positions(GENERATORS["phi3"], {"rope_scaling": rope | {"type": "yarn"}}, 2048) == 2048
    assert scaled_max_positions(GENERATORS["llama"], {}, 2048) == 2048


@pytest.mark.parametrize("rope_type", ["default", "linear", "yarn", "llama3", None])
def test_fixed_frequencies_have_no_limit(rope_type: str | None) -> None:
    assert rope_limit(GENERATORS["llama"], {"rope_parameters": {"rope_type": rope_type, "factor": 2.0}}, 2048) is None


def test_dynamic_frequencies_change_beyond_the_models_length() -> None:
    by_layer_type = {"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "dynamic"}}
    for rope in ({"rope_type": "dynamic", ORIGINAL: 512}, {"type": "dynamic"}, by_layer_type):
        assert rope_limit(GENERATORS["llama"], {"rope_parameters": rope}, 2048) == RopeLimit(
            "dynamic", "max_position_embeddings", 2048
        )


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_old_names_of_longrope_are_known(name: str) -> None:
    limit = rope_limit(GENERATORS["phi3"], {"rope_scaling": {"type": name}, ORIGINAL: 2048}, 8192)
    assert limit == RopeLimit("longrope", ORIGINAL, 2048)


@pytest.mark.parametrize(
    ("model_type", "text", "max_positions"),
    [
        ("llama", {"rope_scaling": {"type": "longrope", ORIGINAL: 1024}}, 1024),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, 8192),
        ("phi3", {"rope_scaling": {"type": "longrope"}, ORIGINAL: 2048}, 2048),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", ORIGINAL: 1024}, ORIGINAL: 2048}, 2048),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, 4096),
    ],
)
def test_longrope_changes_beyond_the_length_that_transformers_takes(
    model_type: str, text: dict[str, object], max_positions: int
) -> None:
    assert rope_limit(GENERATORS[model_type], text, 8192) == RopeLimit("longrope", ORIGINAL, max_positions)
    groups = {key: value | FACTORS if isinstance(value, dict) else value for key, value in text.items()}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 8192}
    theirs = CONFIG_MAPPING[model_type](**sizes, **groups)
    assert theirs.rope_parameters["rope_type"] == "longrope"
    assert theirs.rope_parameters[ORIGINAL] == max_positions
