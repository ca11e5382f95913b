"""Filling the stage of an nn.Module with its tensors from safetensors files."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from serve_app.checkpoints.module_files import SCALE_SUFFIX, read_module_quantization, read_module_tensors
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.engine.float8_check import refuse_float8
from serve_app.engine.module_quantizer import ModuleQuantizer
from serve_app.engine.tensor_file import TensorReader, tensor_reader
from serve_app.errors import ConfigError
from serve_app.models.batch_stage import BatchStage
from serve_app.models.quantization import num_weight_bytes
from serve_app.models.torch_dtypes import DTYPES_OF_FILES, TORCH_DTYPES
from serve_app.models.torch_model import ModuleStage
from serve_app.types.dtypes import DTYPES_BY_CODE
from serve_app.types.shards import BatchModelSettings, WeightScheme

logger = logging.getLogger(__name__)


def load_module_stage(settings: BatchModelSettings, device: torch.device) -> BatchStage:
    """Build and fill one stage; raises ConfigError when the files lack a tensor, or hold another or an extra one."""
    refuse_float8(None, settings.quantization, device)
    stage = ModuleStage(settings)
    headers = read_module_tensors(Path(settings.source_dir))
    parameters, buffers = stage.own_parameters(), stage.own_buffers()
    stored = read_module_quantization(Path(settings.source_dir))
    _check_names(stage.module, headers, stored)
    quantizer = ModuleQuantizer(stage, stored, settings.quantization)
    filled: dict[int, nn.Parameter] = {}  # by the meta parameter: what is shared stays shared
    with tensor_reader() as reader:
        for name, meta in parameters.items():
            if id(meta) not in filled:
                tensor_name = _stored_name(name, meta, parameters, headers)
                if quantizer.is_stored(tensor_name):
                    weight = quantizer.read(name, tensor_name, meta, headers, reader)
                    dtype = _dtype_of(settings, torch.float32)
                    if quantizer.has_kernel(name, meta):
                        quantizer.put_kernel(name, weight.to(device), quantizer.scheme_of(tensor_name), dtype)
                        continue
                    tensor = weight.dequantized(dtype).to(device)
                else:
                    tensor = _read(reader, headers, tensor_name, meta, settings, device)
                if quantizer.is_wanted(name, meta):
                    quantizer.quantize(name, tensor)
                    continue
                filled[id(meta)] = nn.Parameter(tensor, requires_grad=False)
            _owner(stage.module, name).__setattr__(name.rpartition(".")[2], filled[id(meta)])
        for name, buffer in buffers.items():
            value = buffer.to(device)
            if name in headers:
                value = torch.empty_like(buffer, device=device)
                _check_shape(name, buffer, headers[name])
                reader.read(headers[name], value, None, ())
            _owner(stage.module, name).__setattr__(name.rpartition(".")[2], value)
    quantizer.finish()
    stage.drop_others()
    stage.parameter_bytes = num_weight_bytes(stage.module)
    return stage


def check_module_stage(settings: BatchModelSettings) -> None:
    """What load_module_stage refuses before it reads a tensor. Raises ConfigError."""
    stage = ModuleStage(settings)
    headers = read_module_tensors(Path(settings.source_dir))
    parameters = stage.own_parameters()
    stored = read_module_quantization(Path(settings.source_dir))
    _check_names(stage.module, headers, stored)
    for name, meta in parameters.items():
        tensor_name = _stored_name(name, meta, parameters, headers)
        if tensor_name not in stored:
            _check_shape(tensor_name, meta, headers[tensor_name])
    for name, buffer in stage.own_buffers().items():
        if name in headers:
            _check_shape(name, buffer, headers[name])


def _check_names(module: nn.Module, headers: Mapping[str, TensorHeader], quantized: Mapping[str, WeightScheme]) -> None:
    """Every tensor of the files must be the module's: an extra one means weights of another model."""
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    known |= {f"{name}{SCALE_SUFFIX}" for name in quantized}
    spare = sorted(name for name in headers if name not in known)
    is_cut = any(type(child).__name__ == "_PassThrough" for child in module.modules())
    if spare and not is_cut:
        raise ConfigError(
            f"the weights hold {len(spare)} tensors that the module does not have, first {spare[0]}; they belong to "
            "another class or other arguments",
            field="source",
        )


def _stored_name(
    name: str, meta: nn.Parameter, parameters: Mapping[str, nn.Parameter], headers: Mapping[str, TensorHeader]
) -> str:
    """The name under which the files hold a parameter, which may be shared. Raises ConfigError."""
    for other, parameter in parameters.items():
        if parameter is meta and other in headers:
            return other
    raise ConfigError(
        f"the weights have no tensor {name}, which the module needs; give its own weights", field="source"
    )


def _read(
    reader: TensorReader,
    headers: Mapping[str, TensorHeader],
    name: str,
    meta: Tensor,
    settings: BatchModelSettings,
    device: torch.device,
) -> Tensor:
    header = headers[name]
    _check_shape(name, meta, header)
    dtype = meta.dtype
    if dtype.is_floating_point:
        is_plain = DTYPES_BY_CODE[header.dtype].is_plain_float
        dtype = _dtype_of(settings, DTYPES_OF_FILES[header.dtype] if is_plain else dtype)
    tensor = torch.empty(meta.shape, dtype=dtype, device=device)
    reader.read(header, tensor, None, ())
    return tensor


def _dtype_of(settings: BatchModelSettings, stored: torch.dtype) -> torch.dtype:
    return stored if settings.dtype == "auto" else TORCH_DTYPES[settings.dtype]


def _check_shape(name: str, expected: Tensor, header: TensorHeader) -> None:
    if tuple(header.shape) != tuple(expected.shape):
        raise ConfigError(
            f"tensor {name} has shape {list(expected.shape)} in the module, but {list(header.shape)} in {header.file}; "
            "correct `arguments`, or give its own weights",
            field="source",
        )


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])
