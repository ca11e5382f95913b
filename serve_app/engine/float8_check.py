"""Float8 on a GPU that has no such products, refused before anything is loaded."""

import torch

from serve_app.checkpoints.quantized_modules import CheckpointQuantization
from serve_app.errors import ConfigError
from serve_app.models.quantization import kind_of
from serve_app.planning.float8_problem import float8_problem
from serve_app.types.shards import LoadQuantization


def refuse_float8(stored: CheckpointQuantization | None, wanted: LoadQuantization | None, device: torch.device) -> None:
    """Raises ConfigError where the device cannot multiply what a model is stored in, or is to be quantized to."""
    problem = float8_problem(stored, wanted, kind_of(device).capability)
    if problem is not None:
        raise ConfigError(problem, field="quantization")
