"""Filling the stage of an encoder with its tensors."""

from pathlib import Path

import torch
from torch import nn

from serve_app.checkpoints.embedding_head import DenseStep, EmbeddingHead, LayerNormStep
from serve_app.checkpoints.encoder_spec import EncoderChoices, read_encoder_spec
from serve_app.checkpoints.safetensors_header import read_safetensors_header
from serve_app.engine.kernel_choice import BATCH_ROWS, choose_kernel
from serve_app.engine.loader import fill_stage
from serve_app.engine.process_memory import settle_memory
from serve_app.engine.stage_quantizer import Quantizations
from serve_app.engine.tensor_file import tensor_reader
from serve_app.models.batch_stage import BatchStage
from serve_app.models.encoder_model import EncoderStage
from serve_app.models.quantization import num_weight_bytes
from serve_app.models.rope_frequencies import fix_frequencies
from serve_app.models.transformers_model import read_config, resolve_dtype
from serve_app.models.vector_head import VectorHead
from serve_app.parallel.communicator import Communicator
from serve_app.types.shards import BatchModelSettings


def load_encoder_stage(settings: BatchModelSettings, communicator: Communicator, device: torch.device) -> BatchStage:
    """Build and fill one stage. Raises ConfigError."""
    choices = EncoderChoices(settings.task, pooling=settings.pooling, normalize=settings.normalize)
    spec = read_encoder_spec(choices, Path(settings.source_dir))
    directory = spec.spec.source_dir
    config = read_config(directory)
    if spec.classifier is not None:
        config.num_labels = spec.classifier.num_labels
    stage = EncoderStage(config, spec, resolve_dtype(config, settings.dtype), settings.shard)
    quantizations = Quantizations(spec.spec.quantization, settings.quantization)
    kernel = choose_kernel(settings.linear_kernel, stage.dtype, device, BATCH_ROWS)
    fill_stage(directory, stage, communicator, device, spec.spec.tensors, quantizations, kernel)
    settle_memory(device)
    stage.linear_kernel = str(kernel)
    fix_frequencies(stage.model, settings.max_model_len or spec.max_tokens)
    if settings.shard.is_last and spec.embedding is not None:
        stage.vectors = _load_head(spec.embedding, device)
    stage.parameter_bytes = num_weight_bytes(stage.model)
    return stage


def _load_head(spec: EmbeddingHead, device: torch.device) -> VectorHead:
    with torch.device("meta"):
        head = VectorHead(spec)
    for step, module in zip(spec.steps, head.steps, strict=True):
        if isinstance(step, DenseStep | LayerNormStep):
            _fill(module, step.directory, device)
    return head.eval()


def _fill(module: nn.Module, directory: Path, device: torch.device) -> None:
    headers = read_safetensors_header(directory / "model.safetensors")
    with tensor_reader() as reader:
        for name, parameter in list(module.named_parameters()):
            tensor = torch.empty(parameter.shape, device=device)
            reader.read(headers[name], tensor, None, ())
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
