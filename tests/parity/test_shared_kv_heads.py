"""Tensor ranks that outnumber the key-value heads give what transformers gives: a sample, and slowly all types."""

from pathlib import Path

import pytest

from bench.architectures import compare, make_references
from bench.tiny_models import make_tiny, small_config
from serve_app.architectures.lookup import GENERATORS
from serve_app.checkpoints.model_spec import read_model_spec
from tests.checkpoints import make_checkpoint

# qkv in one; norms over all heads, of each, with weights of each; experts; sinks; layers of two kinds
SAMPLE = (
    "llama",
    "phi3",
    "olmo2",
    "qwen3_moe",
    "gpt_oss",
    "gemma3_text",
    "gemma4_unified_text",
    "mimo_v2_flash",
    "cohere",
)
SHARING = [
    name
    for name, one in GENERATORS.items()
    if one.keys.num_kv_heads and one.sizes.latent_dims is None and one.tensor_cut is not None
]
SIZES = {"mimo_v2_flash": {"num_attention_heads": 8}}  # its layers of the second kind have twice the key-value heads


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in sorted(SHARING)]
)
def test_four_ranks_give_what_generate_gives(model_type: str, num_kv_heads: int, tmp_path: Path) -> None:
    config = small_config(model_type, num_key_value_heads=num_kv_heads, **SIZES.get(model_type, {}))
    make_tiny(config, tmp_path)
    assert num_kv_heads in [one.num_kv_heads for one in read_model_spec(tmp_path).head_kinds]
    references = make_references(tmp_path)
    assert compare(tmp_path, (1, 4), references) == ""


@pytest.mark.parametrize(("num_kv_heads", "split"), [(1, (1, 2)), (1, (2, 2)), (2, (2, 4))])
def test_two_ranks_and_two_stages_do_so_too(num_kv_heads: int, split: tuple[int, int], tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path, num_key_value_heads=num_kv_heads)
    assert compare(directory, split, make_references(directory)) == ""
