"""What tensors are, by the names that checkpoints of each family give them."""

import pytest

from serve_app.architectures.tensor_names import (
    is_before_layers,
    is_embedding,
    is_head,
    is_router,
    is_unused,
    layer_of,
)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.mlp.up_proj.weight", 11),
        ("transformer.h.3.attn.c_attn.weight", 3),
        ("h.3.attn.c_attn.weight", 3),
        ("model.decoder.layers.0.fc1.bias", 0),
        ("bert.encoder.layer.7.output.dense.weight", 7),
        ("distilbert.transformer.layer.5.ffn.lin1.weight", 5),
        ("vision_model.layers.1.mlp.fc1.weight", None),
        ("h.3.attn.bias", None),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_a_layer_is_found_in_every_family_and_not_where_nothing_is_loaded(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("name", "is_vocabulary"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("embeddings.word_embeddings.weight", True),
        ("model.embeddings.tok_embeddings.weight", True),
        ("transformer.wpe.weight", False),
        ("model.decoder.embed_positions.weight", False),
        ("model.decoder.project_in.weight", False),
        ("bert.embeddings.LayerNorm.bias", False),
    ],
)
def test_what_comes_before_the_layers_is_on_the_first_stage(name: str, is_vocabulary: bool) -> None:
    assert is_before_layers(name)
    assert is_embedding(name) == is_vocabulary
    assert not is_head(name)


@pytest.mark.parametrize("name", ["model.norm.weight", "ln_f.weight", "classifier.weight", "lm_head.weight"])
def test_what_comes_after_the_layers_is_not(name: str) -> None:
    assert not is_before_layers(name)
    assert is_head(name) == (name == "lm_head.weight")


def test_routers_are_not_taken_for_gated_mlps() -> None:
    assert is_router("model.layers.0.block_sparse_moe.gate.weight")
    assert is_router("model.layers.0.mlp.gate.weight")
    assert not is_router("model.layers.0.mlp.gate_proj.weight")


def test_pre_training_heads_and_old_buffers_are_unused() -> None:
    assert is_unused("cls.predictions.bias")
    assert is_unused("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert is_unused("vision_tower.layers.0.x.weight")
    assert not is_unused("classifier.weight")
