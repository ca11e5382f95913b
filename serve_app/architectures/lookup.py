"""All families by their `model_type`, which of them do what, and why others are not served."""

from collections.abc import Mapping

from serve_app.architectures.decoders import DECODERS
from serve_app.architectures.derived import DERIVED, REFUSED
from serve_app.architectures.encoders import ENCODERS
from serve_app.architectures.record import Architecture

ARCHITECTURES: dict[str, Architecture] = {**DERIVED, **DECODERS, **ENCODERS}
GENERATORS = {name: one for name, one in ARCHITECTURES.items() if one.can_generate}
EMBEDDERS = {name: one for name, one in ARCHITECTURES.items() if one.encoder is not None}

_ELSEWHERE = "docs/models.md lists the types that are"


def why_not_served(model_type: str, served: Mapping[str, Architecture], *, needs_own_code: bool = False) -> str:
    """Why a type is not among those that a task serves, and what to do.

    needs_own_code: config.json names code that comes with the checkpoint.
    """
    if model_type in ARCHITECTURES and served is GENERATORS:
        return "it does not generate; set task: embed, classify or score"
    if model_type in ARCHITECTURES:
        return "it generates, and does not embed or classify yet; set task: generate"
    if model_type in REFUSED:
        return f"{REFUSED[model_type]}; {_ELSEWHERE}"
    if needs_own_code:
        return f"it needs code of its own (auto_map), which is never run; {_ELSEWHERE}"
    return f"no class of transformers' that we know has it; {_ELSEWHERE}"
