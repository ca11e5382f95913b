"""Filling a cut stage with its tensors: each shard reads only what it holds."""

import logging
import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.checkpoints.stored_weights import logical_tensors, refuse_bare_numbers
from serve_app.engine.float8_check import refuse_float8
from serve_app.engine.kernel_choice import STEP_ROWS, KernelChoice, choose_kernel
from serve_app.engine.linear_packer import LinearPacker
from serve_app.engine.process_memory import ask_for_huge_pages, settle_memory
from serve_app.engine.stage_quantizer import Quantizations, StageQuantizer
from serve_app.engine.tensor_file import TensorReader, tensor_reader
from serve_app.errors import ConfigError
from serve_app.models.checkpoint_keys import Source, map_keys
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.cut_stage import CutStage
from serve_app.models.quantization import num_weight_bytes
from serve_app.models.rope_frequencies import fix_frequencies
from serve_app.models.transformers_model import TransformersStage, read_config, resolve_dtype
from serve_app.parallel.communicator import Communicator
from serve_app.parallel.tensor_parallel import Part, cut_stage
from serve_app.types.shards import LoadQuantization, ShardSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage whose tensors are in memory."""

    stage: TransformersStage
    parameter_bytes: int
    kernel: KernelChoice | None  # of linear layers; None: they are nn.Linear


def load_stage(
    source_dir: Path,
    dtype: str,
    shard: ShardSpec,
    communicator: Communicator,
    device: torch.device,
    quantization: LoadQuantization | None = None,
    max_model_len: int | None = None,
    linear_kernel: str | None = None,
    compiled: CompiledKernels | None = None,
    compiled_reason: str | None = None,
) -> LoadedStage:
    """Build and fill one shard; raises ConfigError when the checkpoint lacks a tensor or has one of another shape.

    max_model_len: tokens that rotary frequencies are made for; None: each step has its own.
    linear_kernel: see choose_kernel; None: linear layers stay as they are, with their weights.
    compiled: kernels of steps on CPU, if any; compiled_reason: why there are none.
    """
    config = read_config(source_dir)
    spec = read_model_spec(source_dir)
    stage = TransformersStage(config, resolve_dtype(config, dtype), shard, spec.head_kinds)
    kernel = (
        None
        if linear_kernel is None
        else choose_kernel(linear_kernel, stage.dtype, device, STEP_ROWS, None, compiled, compiled_reason)
    )
    quantizations = Quantizations(spec.quantization, quantization)
    fill_stage(source_dir, stage, communicator, device, spec.tensors, quantizations, kernel, compiled)
    if compiled is not None:
        stage.take_kernels(compiled)
    settle_memory(device)
    if max_model_len is not None:
        fix_frequencies(stage.model, max_model_len)
        stage.keep_angles(max_model_len)
    return LoadedStage(stage, num_weight_bytes(stage.model), kernel)


def fill_stage(
    source_dir: Path,
    stage: CutStage,
    communicator: Communicator,
    device: torch.device,
    headers: Mapping[str, TensorHeader],
    quantizations: Quantizations | None = None,
    kernel: KernelChoice | None = None,
    compiled: CompiledKernels | None = None,
) -> None:
    """Cut a stage to its rank's part, read its tensors, and pack them for a kernel. Raises ConfigError.

    The memory of this process is to be settled afterwards.
    """
    quantizations = quantizations or Quantizations()
    refuse_float8(quantizations.checkpoint, quantizations.wanted, device)
    parts = cut_stage(stage, communicator)
    packer = LinearPacker(stage, None if kernel is None else kernel.name, compiled)
    _fill_parameters(source_dir, stage, parts, headers, device, quantizations, packer)


def _fill_parameters(
    source_dir: Path,
    stage: CutStage,
    parts: dict[str, Part],
    headers: Mapping[str, TensorHeader],
    device: torch.device,
    quantizations: Quantizations,
    packer: LinearPacker,
) -> None:
    logical = logical_tensors(headers)
    key_map = map_keys(stage, logical.headers)
    if key_map.unused and stage.shard.index == 0:
        logger.warning("checkpoint tensors unused count=%d first=%s", len(key_map.unused), key_map.unused[0])
    _fill_buffers(stage, key_map.sources, device)
    tied: dict[str, nn.Parameter] = {}  # by checkpoint tensor: head and embedding of one shard share their memory
    uses = Counter(source.tensor_name for sources in key_map.sources.values() for source in sources)
    is_tied = getattr(stage.config, "tie_word_embeddings", False)
    quantizer = StageQuantizer(stage, quantizations, logical.stored, device)
    with tensor_reader() as reader:
        for name, meta in _in_order(stage, is_tied=is_tied):
            sources = key_map.sources.get(name)
            if not sources:
                raise ConfigError(
                    f"source={source_dir} has no tensor for parameter {name}; download it again", field="source"
                )
            part, whole_shape = parts.get(name, Part()), stage.whole_state[name]
            if quantizer.is_stored(name, sources):
                quantizer.read(name, sources[0], whole_shape, part, reader)
                continue
            shared = tied.get(sources[0].tensor_name) if is_tied else None
            if shared is not None and not quantizer.is_wanted(name):
                _set_parameter(stage.model, name, shared)
                packer.filled(name)
                continue
            dtype = torch.float32 if quantizer.is_wanted(name) else meta.dtype
            tensor = torch.empty(meta.shape, dtype=dtype, device=device)
            if not quantizer.is_wanted(name) and not packer.is_wanted(name):
                ask_for_huge_pages(tensor)
            _fill(name, tensor, whole_shape, sources, part, logical.headers, reader)
            if quantizer.is_wanted(name):
                quantizer.quantize(name, tensor)
                continue
            parameter = nn.Parameter(tensor, requires_grad=False)
            _set_parameter(stage.model, name, parameter)
            packer.filled(name)
            if len(sources) == 1 and uses[sources[0].tensor_name] > 1 and sources[0].num_chunks == 1:
                tied[sources[0].tensor_name] = parameter
        _read_buffers(stage, key_map.sources, logical.headers, reader)
    quantizer.finish()
    packer.finish()


def _in_order(stage: CutStage, *, is_tied: bool) -> list[tuple[str, nn.Parameter]]:
    """Meta parameters as they are read: the head first, which is packed while little is held; not if it is tied."""
    parameters = list(stage.model.named_parameters(remove_duplicate=False))
    if is_tied or stage.head is None:
        return parameters
    return sorted(parameters, key=lambda one: not one[0].startswith(f"{stage.head}."))


def _read_buffers(
    stage: CutStage, sources: Mapping[str, list[Source]], headers: Mapping[str, TensorHeader], reader: TensorReader
) -> None:
    """Buffers that a checkpoint does store: what routers add to the scores of experts."""
    for name, buffer in stage.model.named_buffers():
        for source in sources.get(name, [])[:1]:
            header = headers[source.tensor_name]
            _check_shape(name, buffer.shape, header)
            reader.read(header, buffer, None, ())


def _fill(
    name: str,
    tensor: Tensor,
    whole_shape: torch.Size,
    sources: list[Source],
    part: Part,
    headers: Mapping[str, TensorHeader],
    reader: TensorReader,
) -> None:
    """Read a parameter's sources into it.

    tensor: this rank's part; whole_shape: the shape of the uncut parameter.
    """
    if part.is_zero:
        tensor.zero_()
        return
    if sources[0].expert is None:
        if len(sources) > 1:
            names = ", ".join(source.tensor_name for source in sources)
            raise ConfigError(f"the tensors {names} are all parameter {name}; remove all but one", field="source")
        header = _chunk_of(headers[sources[0].tensor_name], sources[0])
        _check_shape(name, whole_shape, header)
        reader.read(header, tensor, part.dim, part.ranges)
        return
    own = {source.tensor_name: headers[source.tensor_name] for source in sources}
    _check_experts(name, whole_shape, sources, own)
    for source in sources:
        _fill_expert(name, tensor, whole_shape, source, part, own[source.tensor_name], reader)


def _chunk_of(header: TensorHeader, source: Source) -> TensorHeader:
    """The part of a stored tensor that a source is, as a tensor of its own."""
    if source.num_chunks == 1:
        return header
    num_rows, num_bytes = header.shape[0] // source.num_chunks, header.num_bytes // source.num_chunks
    shape, offset_bytes = (num_rows, *header.shape[1:]), header.offset_bytes + source.chunk * num_bytes
    return replace(header, shape=shape, num_bytes=num_bytes, offset_bytes=offset_bytes)


def _fill_expert(
    name: str,
    tensor: Tensor,
    whole_shape: torch.Size,
    source: Source,
    part: Part,
    header: TensorHeader,
    reader: TensorReader,
) -> None:
    """Read one expert's matrix into its place in a parameter [E, out, in] (this rank's part of it)."""
    assert source.expert is not None
    target = tensor[source.expert]
    expected = list(whole_shape[1:])
    if source.join_dim is not None:
        join_dim = source.join_dim - 1
        num_joined = whole_shape[source.join_dim] // header.shape[join_dim]
        share = target.shape[join_dim] // num_joined
        target = target.narrow(join_dim, source.position * share, share)
        expected[join_dim] //= num_joined
    _check_shape(name, torch.Size(expected), header)
    if part.dim is None:
        reader.read(header, target, None, ())
        return
    dim = part.dim - 1
    if part.dim == source.join_dim:
        size = header.shape[dim]
        start, end = part.ranges[source.position]
        offset = source.position * size
        reader.read(header, target, dim, ((start - offset, end - offset),))
    else:
        reader.read(header, target, dim, part.ranges)


def _check_shape(name: str, expected: torch.Size, header: TensorHeader) -> None:
    refuse_bare_numbers(name, header)
    if tuple(header.shape) != tuple(expected):
        raise ConfigError(
            f"parameter {name} has shape {list(expected)} by config.json, but {list(header.shape)} in {header.file}",
            field="source",
        )


def _check_experts(
    name: str, whole_shape: torch.Size, sources: list[Source], headers: Mapping[str, TensorHeader]
) -> None:
    missing = set(range(whole_shape[0])) - {source.expert for source in sources}
    num_elements = sum(math.prod(header.shape) for header in headers.values())
    if missing or num_elements != math.prod(whole_shape):
        raise ConfigError(
            f"parameter {name} has {math.prod(whole_shape)} elements in {whole_shape[0]} experts by config.json, but "
            f"{num_elements} in {headers[sources[0].tensor_name].file} and the files beside it"
            + (f", where experts {sorted(missing)[:8]} are missing" if missing else ""),
            field="source",
        )


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module_name, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module_name), leaf, parameter)


def _fill_buffers(stage: CutStage, stored: Container[str], device: torch.device) -> None:
    """Compute the buffers (rotary frequencies, embedding scales), save those that the checkpoint stores."""
    for module_name, module in stage.model.named_modules():
        own = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in own.items():
            empty = torch.empty_like(buffer, device=device)
            module._buffers[name] = empty.fill_(math.nan) if empty.is_floating_point() else empty
        if not own:
            continue
        stage.model._init_weights(module)
        for name in own:
            filled = module.get_buffer(name)
            if f"{module_name}.{name}" in stored:
                continue
            if filled.is_floating_point() and bool(filled.isnan().any()):
                raise ConfigError(f"buffer {module_name}.{name} of {stage.config.model_type} cannot be computed")
