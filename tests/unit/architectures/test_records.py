"""The records against the classes of transformers that they describe."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from serve_app.architectures.decoders import DECODERS
from serve_app.architectures.encoders import ENCODERS
from serve_app.architectures.lookup import ARCHITECTURES, EMBEDDERS, GENERATORS

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
}


def model_of(model_type: str) -> Any:
    config = CONFIG_MAPPING[model_type]()
    known = config.to_dict().keys() | config.attribute_map.keys()
    config = CONFIG_MAPPING[model_type](**{key: value for key, value in SMALL.items() if key in known}, pad_token_id=0)
    make = AutoModelForCausalLM if model_type in GENERATORS else AutoModel
    with torch.device("meta"):
        return make.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("model_type", [*DECODERS, *ENCODERS])
def test_every_name_of_a_record_is_one_of_the_model(model_type: str) -> None:
    record, model = ARCHITECTURES[model_type], model_of(model_type)
    parts, base = record.parts, model.base_model
    names = [parts.layers, parts.embedding, *parts.positions, *parts.exit]
    names += [] if parts.embeddings is None else [parts.embeddings]
    assert len(base.get_submodule(parts.layers)) == 2
    for name in names:
        if name.rpartition(".")[2] != "project_out":  # only of models whose embeddings are narrower than their layers
            base.get_submodule(name)
    if parts.head is not None:
        model.get_submodule(parts.head)
    cut = record.tensor_cut
    for name in () if cut is None else [*(cut.plan or {}), *cut.packed]:
        owner, _, leaf = name.replace("*", "0").rpartition(".")
        assert hasattr(base.get_submodule(owner), leaf)
    for module_name, attributes in () if cut is None else cut.divided.items():
        assert all(hasattr(base.get_submodule(parts.layers)[0].get_submodule(module_name), one) for one in attributes)


@pytest.mark.parametrize("model_type", [name for name, one in ARCHITECTURES.items() if one.same_input])
def test_linear_layers_of_the_same_input_are_there(model_type: str) -> None:
    modules = list(model_of(model_type).modules())
    for names in ARCHITECTURES[model_type].same_input:
        assert any(all(hasattr(module, name) for name in names) for module in modules)


@pytest.mark.parametrize("model_type", [name for name, one in ARCHITECTURES.items() if one.fused.norm])
def test_fused_classes_are_those_of_the_model(model_type: str) -> None:
    classes = {type(module).__name__ for module in model_of(model_type).modules()}
    fused = ARCHITECTURES[model_type].fused
    assert fused.norm in classes
    assert fused.layer is None or fused.layer in classes


def test_every_family_does_something() -> None:
    assert ARCHITECTURES.keys() == GENERATORS.keys() | EMBEDDERS.keys()
