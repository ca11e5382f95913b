"""Quantizing a checkpoint tensor by tensor: round-to-nearest, however large the model is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.architectures.tensor_names import is_embedding, is_head, is_router, layer_of
from serve_app.checkpoints.model_spec import ModelSpec, read_checkpoint, read_model_spec
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.compress.artifact import WeightWriter, copy_text_files, new_directory, write_json
from serve_app.compress.recipe import write_recipe
from serve_app.compress.schemes import EMBEDDING_SCHEME, encode, quantization_config, scheme_of
from serve_app.engine.tensor_file import TensorReader, tensor_reader
from serve_app.errors import ConfigError
from serve_app.models.torch_dtypes import DTYPES_OF_FILES, TORCH_DTYPES
from serve_app.types.dtypes import DTYPES_BY_CODE, SERVED_DTYPES
from serve_app.types.shards import WeightScheme

HEAD_WEIGHT = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class QuantizeSettings:
    """The options of `rayshard compress quantize`."""

    scheme: str
    group_size: int | None = None
    has_embedding: bool = False
    has_head: bool = False
    ignored: tuple[str, ...] = ()  # modules by the ends of their names


def quantize(source: Path, target: Path, settings: QuantizeSettings, *, can_replace: bool = False) -> None:
    """Write a quantized copy of `source`, which transformers and vLLM load too. Raises ConfigError."""
    spec = read_quantizable(source, has_head=False)
    if settings.has_head and not spec.is_tied and not any(map(is_head, spec.tensors)):
        raise ConfigError(f"--head has no effect on {source}, which has no head over its vocabulary; leave it out")
    scheme = scheme_of(settings.scheme, settings.group_size)
    chosen = _choose(spec, settings)
    _check_groups(spec, scheme, chosen)
    config = json.loads((source / "config.json").read_bytes())
    dtype = TORCH_DTYPES[spec.dtype]
    is_untied = spec.is_tied and (settings.has_head or settings.has_embedding)
    with new_directory(target, can_replace=can_replace, needed_bytes=spec.num_bytes) as staging:
        with tensor_reader() as reader:
            encoder = _Encoder(settings.scheme, chosen, dtype, reader)
            writer = WeightWriter(staging)
            for name, header in tqdm(spec.tensors.items(), desc="quantize", unit="tensor", disable=None):
                encoder.write(name, header, writer)
                if is_untied and is_embedding(name):
                    encoder.write(HEAD_WEIGHT, header, writer)
            writer.close()
        if not is_encoder(spec):
            config["tie_word_embeddings"] = spec.is_tied and not is_untied
        ignored = _ignored(spec, settings, chosen)
        config["quantization_config"] = quantization_config(
            scheme, has_embedding=settings.has_embedding, ignored=ignored
        )
        write_json(staging / "config.json", config)
        copy_text_files(source, staging)
        write_recipe(staging, source, "quantize", _recipe(settings, scheme))


def is_encoder(spec: ModelSpec) -> bool:
    """Whether a model embeds and classifies, and never generates."""
    return not ARCHITECTURES[spec.model_type].can_generate


def read_quantizable(source: Path, *, has_head: bool = True) -> ModelSpec:
    """The checkpoint in `source`. Raises ConfigError when it cannot be compressed.

    has_head: it must generate; else it may be an encoder, or a decoder that embeds.
    """
    spec = read_model_spec(source) if has_head else read_checkpoint(source, ARCHITECTURES)
    if is_encoder(spec):
        spec = replace(spec, is_tied=False)  # whatever config.json says of a head that is not there
    if spec.quantization is not None:
        raise ConfigError(f"{source} is quantized already ({spec.quantization.method}); give the original model")
    if spec.num_experts is not None:
        raise ConfigError(f"{source}: model_type={spec.model_type} has experts, which are not compressed")
    if ARCHITECTURES[spec.model_type].has_transposed_matrices:
        raise ConfigError(
            f"{source}: model_type={spec.model_type} keeps its matrices in a way that compressed-tensors has no form "
            "for; serve it with `quantization:` in the Serve file instead"
        )
    if spec.dtype not in SERVED_DTYPES:
        raise ConfigError(f"{source}: dtype {spec.dtype} cannot be compressed; save it as {', '.join(SERVED_DTYPES)}")
    return spec


def _choose(spec: ModelSpec, settings: QuantizeSettings) -> dict[str, WeightScheme]:
    """The scheme of each tensor that is quantized."""
    scheme = scheme_of(settings.scheme, settings.group_size)
    chosen = {}
    for name, header in spec.tensors.items():
        module = name.removesuffix(".weight")
        if len(header.shape) != 2 or not name.endswith(".weight") or is_router(name):
            continue
        if any(module == one or module.endswith(f".{one}") for one in settings.ignored):
            continue
        if layer_of(name) is not None or (is_head(name) and settings.has_head):
            chosen[name] = scheme
        elif is_embedding(name) and settings.has_embedding:
            chosen[name] = EMBEDDING_SCHEME
    if spec.is_tied and settings.has_head:
        chosen[HEAD_WEIGHT] = scheme
    if not chosen:
        raise ConfigError("nothing is left to quantize; ignore less")
    return chosen


def _check_groups(spec: ModelSpec, scheme: WeightScheme, chosen: Mapping[str, WeightScheme]) -> None:
    for name in chosen:
        num_inputs = spec.hidden_size if name == HEAD_WEIGHT else spec.tensors[name].shape[1]
        if scheme.group_size is not None and chosen[name] == scheme and num_inputs % scheme.group_size:
            raise ConfigError(
                f"--group-size {scheme.group_size} does not divide the {num_inputs} inputs of {name}; use one that "
                "does, or --ignore it"
            )


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Writes the tensors that replace one."""

    scheme_name: str
    chosen: Mapping[str, WeightScheme]
    dtype: torch.dtype
    reader: TensorReader

    def write(self, name: str, header: TensorHeader, writer: WeightWriter) -> None:
        scheme = self.chosen.get(name)
        dtype = self.dtype if scheme is None else torch.float32
        if not DTYPES_BY_CODE[header.dtype].is_plain_float:  # a buffer, of positions say
            dtype = DTYPES_OF_FILES[header.dtype]
        tensor = torch.empty(header.shape, dtype=dtype)
        self.reader.read(header, tensor, None, ())
        if scheme is None:
            writer.add(name, tensor)
            return
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{name} holds numbers that are not finite; give a sound model")
        encoded = encode(tensor, self.scheme_name, scheme, self.dtype, is_embedding=is_embedding(name))
        for leaf, part in encoded.tensors.items():
            writer.add(f"{name.removesuffix('weight')}{leaf}", part)


def _ignored(spec: ModelSpec, settings: QuantizeSettings, chosen: Mapping[str, WeightScheme]) -> list[str]:
    """Linear layers that are not quantized, by name; of an encoder all matrices outside its layers too."""
    names = [] if settings.has_head or is_encoder(spec) else ["lm_head"]
    for name, header in spec.tensors.items():
        is_matrix = len(header.shape) == 2 and name.endswith(".weight")
        if is_matrix and name not in chosen and (layer_of(name) is not None or is_encoder(spec)):
            names += _names_of(name.removesuffix(".weight"), spec)
    return names


def _names_of(module: str, spec: ModelSpec) -> list[str]:
    """What a module is called in a file, and where the model is loaded without what is around its base."""
    layers = ARCHITECTURES[spec.model_type].parts.layers
    prefix = next(name.partition(f"{layers}.0.")[0] for name in spec.tensors if f"{layers}.0." in name)
    inner = module.removeprefix(prefix)
    return [module] if inner == module or not is_encoder(spec) else [module, inner]


def _recipe(settings: QuantizeSettings, scheme: WeightScheme) -> dict[str, Any]:
    return {
        "scheme": settings.scheme,
        "method": "round to nearest",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "embedding": settings.has_embedding,
        "head": settings.has_head,
        "ignored": list(settings.ignored),
    }
