"""How config.json stretches rotary positions, and from which length a request changes its batch-mates' answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serve_app.architectures.record import Architecture
from serve_app.checkpoints.checkpoint_json import is_count


@dataclass(frozen=True, slots=True)
class RopeLimit:
    """Frequencies that a whole batch changes when its longest sequence has more than `max_positions` tokens."""

    rope_type: str
    setting: str  # of config.json, that gives max_positions
    max_positions: int


def scaled_max_positions(architecture: Architecture, text: Mapping[str, object], positions: int) -> int:
    """Tokens that a model is made for, where config.json says `positions`."""
    for rope in _rope_settings(text):
        factor, original = rope.get("factor"), _length(rope.get("original_max_position_embeddings", positions))
        is_yarn = _rope_type(architecture, rope) == "yarn"
        if is_yarn and isinstance(factor, int | float) and original is not None and 1 <= factor <= 1000:
            return max(positions, int(original * factor))
    return positions


def rope_limit(architecture: Architecture, text: Mapping[str, object], positions: int) -> RopeLimit | None:
    """Where frequencies begin to depend on the batch; None: they never do."""
    for rope in _rope_settings(text):
        rope_type = _rope_type(architecture, rope)
        if rope_type == "dynamic":
            return RopeLimit("dynamic", "max_position_embeddings", positions)
        if rope_type == "longrope":
            setting = "original_max_position_embeddings"
            own = text.get(setting, architecture.sizes.original_max_positions)
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


def _rope_type(architecture: Architecture, rope: Mapping[str, object]) -> object:
    rope_type = rope.get("rope_type", rope.get("type"))
    return "longrope" if rope_type in architecture.keys.longrope_names else rope_type
