"""Records of the decoders that need no entry of ours: derived from transformers' classes, and proven by a sweep."""

import json
from importlib.resources import files
from typing import Any

from serve_app.architectures.other_heads import OtherHeads
from serve_app.architectures.record import Architecture, ConfigKeys, EncoderFacts, Parts, Sizes, TensorCut

_TABLE = json.loads(files("serve_app.architectures").joinpath("derived.json").read_text())


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _record(row: dict[str, Any]) -> Architecture:
    cut = row.get("tensor_cut")
    encoder, other = row.get("encoder"), row.get("other_heads")
    return Architecture(
        sizes=Sizes(**_tuples(row["sizes"])),
        keys=ConfigKeys(**_tuples(row["keys"])),
        parts=Parts(**_tuples(row["parts"])),
        tensor_cut=None if cut is None else TensorCut(**_tuples(cut)),
        encoder=None if encoder is None else EncoderFacts(**encoder),
        other_heads=None if other is None else OtherHeads(**other),
        layer_kinds=tuple(row.get("layer_kinds", ())),
        unserved_keys=row.get("unserved_keys", {}),
        sparse_above=row.get("sparse_above", {}),
        streams_key=row.get("streams_key"),
        layers_give_tuples=bool(row.get("layers_give_tuples", False)),
    )


DERIVED = {model_type: _record(row) for model_type, row in _TABLE["records"].items()}
REFUSED: dict[str, str] = {name: reason for reason, names in _TABLE["refused"].items() for name in names}
