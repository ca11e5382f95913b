"""How config.json stretches rotary positions, and up to which length a request is then its batch-mates' equal."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serve_app.checkpoints.checkpoint_json import is_count

_ORIGINAL_BY_MODEL_TYPE = {"phi3": 4096}  # what a missing original_max_position_embeddings means


@dataclass(frozen=True, slots=True)
class RopeLimit:
    """Frequencies that a whole batch changes when its longest sequence has more than `max_positions` tokens."""

    rope_type: str
    setting: str  # of config.json, that gives max_positions
    max_positions: int


def scaled_max_positions(model_type: str, text: Mapping[str, object], positions: int) -> int:
    """Tokens that a model is made for, when config.json says `positions`."""
    for rope in _rope_settings(text):
        factor, original = rope.get("factor"), _length(rope.get("original_max_position_embeddings", positions))
        is_yarn = _rope_type(model_type, rope) == "yarn"
        if is_yarn and isinstance(factor, int | float) and original is not None and 1 <= factor <= 1000:
            return max(positions, int(original * factor))
    return positions


def rope_limit(model_type: str, text: Mapping[str, object], positions: int) -> RopeLimit | None:
    """Where frequencies begin to depend on the batch; None: they never do."""
    for rope in _rope_settings(text):
        rope_type = _rope_type(model_type, rope)
        if rope_type == "dynamic":
            return RopeLimit("dynamic", "max_position_embeddings", positions)
        if rope_type == "longrope":
            setting = "original_max_position_embeddings"
            own = text.get(setting, _ORIGINAL_BY_MODEL_TYPE.get(model_type))
            return RopeLimit("longrope", setting, _length(own, rope.get(setting)) or positions)
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


def _rope_type(model_type: str, rope: Mapping[str, object]) -> object:
    rope_type = rope.get("rope_type", rope.get("type"))
    if model_type == "phi3" and rope_type in ("su", "yarn"):
        return "longrope"  # what old phi3 checkpoints call it
    return rope_type
