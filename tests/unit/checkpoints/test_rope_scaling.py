"""How config.json stretches rotary positions."""

import pytest
from transformers import CONFIG_MAPPING

from serve_app.architectures.lookup import GENERATORS
from serve_app.checkpoints.rope_scaling import scaled_max_positions, unstretched_positions

ORIGINAL = "original_max_position_embeddings"
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    ("model_type", "rope", "longest"),
    [
        ("llama", {"rope_parameters": {"factor": 4.0, ORIGINAL: 1024, "rope_type": "yarn"}}, 4096),
        ("qwen2", {"rope_scaling": {"factor": 4.0, "type": "yarn"}}, 8192),
        ("llama", {"rope_scaling": {"factor": 4.0, "type": "linear"}}, 8192),
        ("llama", {"rope_scaling": {"factor": 1.5, "rope_type": "linear"}}, 3072),
        ("mistral", {"rope_scaling": {"factor": 2, "type": "dynamic"}}, 4096),
        ("llama", {"rope_parameters": {"factor": 4.0, ORIGINAL: 1024, "rope_type": "llama3"}}, 2048),
        ("llama", {"rope_scaling": {"factor": 4.0, ORIGINAL: 1024, "type": "longrope"}}, 2048),
        ("phi3", {"rope_scaling": {"factor": 4.0, ORIGINAL: 1024, "type": "yarn"}}, 2048),
        ("gemma3_text", {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, 2048),  # counts it already
        ("llama", {"rope_scaling": {"factor": 0.5, "type": "linear"}}, 2048),
        ("llama", {"rope_scaling": {"factor": "4", "type": "linear"}}, 2048),
        ("llama", {"rope_scaling": None}, 2048),
        ("llama", {}, 2048),
    ],
)
def test_a_model_is_as_long_as_vllm_takes_it(model_type: str, rope: dict[str, object], longest: int) -> None:
    assert scaled_max_positions(GENERATORS[model_type], rope, 2048) == longest


@pytest.mark.parametrize("rope_type", ["default", "linear", "yarn", "llama3", None])
def test_fixed_frequencies_are_those_of_every_length(rope_type: str | None) -> None:
    text = {"rope_parameters": {"rope_type": rope_type, "factor": 2.0}}
    assert unstretched_positions(GENERATORS["llama"], text, 2048) is None


def test_dynamic_frequencies_change_beyond_the_models_length() -> None:
    by_layer_type = {"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "dynamic"}}
    for rope in ({"rope_type": "dynamic", ORIGINAL: 512}, {"type": "dynamic"}, by_layer_type):
        assert unstretched_positions(GENERATORS["llama"], {"rope_parameters": rope}, 2048) == 2048


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_old_names_of_longrope_are_known(name: str) -> None:
    text = {"rope_scaling": {"type": name}, ORIGINAL: 2048}
    assert unstretched_positions(GENERATORS["phi3"], text, 8192) == 2048


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
    assert unstretched_positions(GENERATORS[model_type], text, 8192) == max_positions
    groups = {key: value | FACTORS if isinstance(value, dict) else value for key, value in text.items()}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 8192}
    theirs = CONFIG_MAPPING[model_type](**sizes, **groups)
    assert theirs.rope_parameters["rope_type"] == "longrope"
    assert theirs.rope_parameters[ORIGINAL] == max_positions
