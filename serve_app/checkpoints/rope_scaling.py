"""How config.json stretches rotary positions: the longest sequence, and what is served where no length is set."""

from collections.abc import Iterator, Mapping

from serve_app.architectures.record import Architecture
from serve_app.checkpoints.checkpoint_json import is_count

_STRETCHED_BY_FACTOR = ("linear", "dynamic", "yarn")
_MAX_FACTOR = 1000


def scaled_max_positions(architecture: Architecture, text: Mapping[str, object], positions: int) -> int:
    """Tokens that a model is made for, where config.json says `positions`: as vLLM derives its max_model_len."""
    if architecture.keys.has_stretched_positions:
        return positions
    for rope in _rope_settings(text):
        rope_type, factor = _rope_type(architecture, rope), rope.get("factor")
        if rope_type not in _STRETCHED_BY_FACTOR or not isinstance(factor, int | float):
            continue
        original: int | None = positions
        if rope_type == "yarn":
            original = _length(rope.get("original_max_position_embeddings", positions))
        if original is not None and 1 <= factor <= _MAX_FACTOR:
            return max(positions, int(original * factor))
    return positions


def unstretched_positions(architecture: Architecture, text: Mapping[str, object], positions: int) -> int | None:
    """Tokens up to which dynamic and longrope frequencies are the original ones; None: no length changes them.

    Longer contexts have frequencies that answer short prompts worse, so they are for those who ask for them.
    """
    for rope in _rope_settings(text):
        rope_type = _rope_type(architecture, rope)
        if rope_type == "dynamic":
            return positions
        if rope_type == "longrope":
            setting = "original_max_position_embeddings"
            own = text.get(setting, architecture.sizes.original_max_positions)
            return _length(own, rope.get(setting)) or positions
    return None


def _length(*candidates: object) -> int | None:
    return next((found for found in candidates if isinstance(found, int) and is_count(found)), None)


def _rope_settings(text: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """The groups of settings, one for each kind of layer; the older name goes first, as in transformers."""
    for key in ("rope_scaling", "rope_parameters"):
        group = text.get(key)
        if isinstance(group, dict):
            by_layer_type = [part for part in group.values() if isinstance(part, dict)]
            yield from by_layer_type or [group]


def _rope_type(architecture: Architecture, rope: Mapping[str, object]) -> object:
    rope_type = rope.get("rope_type", rope.get("type"))
    return "longrope" if rope_type in architecture.keys.longrope_names else rope_type
