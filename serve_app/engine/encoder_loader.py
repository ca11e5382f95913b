"""Filling the stage of an encoder with its tensors."""

from pathlib import Path

import torch
from torch import nn

from serve_app.checkpoints.encoder_spec import EncoderChoices, ProjectionSpec, read_encoder_spec
from serve_app.checkpoints.safetensors_header import read_safetensors_header
from serve_app.engine.loader import fill_stage
from serve_app.engine.stage_quantizer import Quantizations
from serve_app.engine.tensor_file import tensor_reader
from serve_app.models.batch_stage import BatchStage
from serve_app.models.encoder_model import EncoderStage
from serve_app.models.pooling import Projection
from serve_app.models.quantization import num_weight_bytes
from serve_app.models.transformers_model import read_config, resolve_dtype
from serve_app.parallel.communicator import Communicator
from serve_app.types.shards import BatchModelSettings


def load_encoder_stage(settings: BatchModelSettings, communicator: Communicator, device: torch.device) -> BatchStage:
    """Build and fill one stage. Raises ConfigError."""
    source_dir = Path(settings.source_dir)
    choices = EncoderChoices(settings.task, pooling=settings.pooling, normalize=settings.normalize)
    spec = read_encoder_spec(choices, source_dir)
    config = read_config(source_dir)
    if spec.num_labels:
        config.num_labels = spec.num_labels
    stage = EncoderStage(config, spec, resolve_dtype(config, settings.dtype), settings.shard)
    quantizations = Quantizations(spec.spec.quantization, settings.quantization)
    fill_stage(source_dir, stage, communicator, device, spec.spec.tensors, quantizations)
    if settings.shard.is_last:
        stage.projections = [_load_projection(one, device) for one in spec.projections]
    stage.parameter_bytes = num_weight_bytes(stage.model)
    return stage


def _load_projection(spec: ProjectionSpec, device: torch.device) -> Projection:
    projection = Projection(spec.num_inputs, spec.num_outputs, spec.has_bias, spec.activation)
    headers = read_safetensors_header(spec.directory / "model.safetensors")
    with tensor_reader() as reader:
        for name, parameter in list(projection.linear.named_parameters()):
            tensor = torch.empty(parameter.shape, device=device)
            reader.read(headers[f"linear.{name}"], tensor, None, ())
            setattr(projection.linear, name, nn.Parameter(tensor, requires_grad=False))
    return projection.eval()
