"""One stage of a batch model, whatever kind of model it is."""

import torch

from serve_app.engine.module_loader import load_module_stage
from serve_app.models.batch_stage import BatchStage
from serve_app.parallel.communicator import Communicator
from serve_app.types.shards import BatchModelSettings


def load_batch_stage(settings: BatchModelSettings, communicator: Communicator, device: torch.device) -> BatchStage:
    """Build and fill one stage. Raises ConfigError."""
    if settings.architecture is None:
        from serve_app.engine.encoder_loader import load_encoder_stage  # and with it transformers

        return load_encoder_stage(settings, communicator, device)
    return load_module_stage(settings, device)
