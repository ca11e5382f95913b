"""All families by their `model_type`, and which of them do what."""

from serve_app.architectures.decoders import DECODERS
from serve_app.architectures.encoders import ENCODERS
from serve_app.architectures.record import Architecture

ARCHITECTURES: dict[str, Architecture] = {**DECODERS, **ENCODERS}
GENERATORS = {name: one for name, one in ARCHITECTURES.items() if one.can_generate}
EMBEDDERS = {name: one for name, one in ARCHITECTURES.items() if one.encoder is not None}
