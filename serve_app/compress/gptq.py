"""GPTQ (arXiv:2210.17323) with calibration text, by llm-compressor (the extra `compress`)."""

import json
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import loguru
import psutil
import torch
from compressed_tensors.offload import load_offloaded_model
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.quality_gate import sha256_of
from serve_app.compress.artifact import copy_text_files, new_directory, write_json
from serve_app.compress.quantize import QuantizeSettings, read_quantizable
from serve_app.compress.recipe import write_recipe
from serve_app.compress.schemes import scheme_of
from serve_app.compress.texts import read_texts, sequences_of
from serve_app.errors import ConfigError
from serve_app.preprocessing.tokenizer import Tokenizer

_MAX_TOKENS = 512
_RESERVED_BYTES = 5 * 2**30  # for the layer that is worked on, its inputs, and other processes


def quantize_gptq(
    source: Path,
    target: Path,
    settings: QuantizeSettings,
    calibration: Path,
    *,
    num_samples: int = 256,
    seed: int = 0,
    max_memory_bytes: int | None = None,
    can_replace: bool = False,
) -> None:
    """Write a copy whose weights are chosen so that the layers' outputs on the texts stay. Raises ConfigError.

    max_memory_bytes: what the model's weights may take; layers that find no room are kept in files, and come in one
    after the other. None: what is free, less what the work itself needs.
    """
    for package in ("llmcompressor", "compressed_tensors"):  # a line for each matrix
        loguru.logger.disable(package)
    spec = read_quantizable(source)
    scheme = scheme_of(settings.scheme, settings.group_size)
    if settings.scheme not in ("int4", "int3", "int8_weight_only"):
        raise ConfigError(f"--calibration has no effect on --scheme {settings.scheme}; leave it out, or use int4")
    if settings.has_embedding:
        raise ConfigError("--embedding has no part in GPTQ; leave it out, or leave out --calibration")
    sequences = list(sequences_of(read_texts(calibration), Tokenizer.load(source), _MAX_TOKENS))
    random.Random(seed).shuffle(sequences)
    sequences = sequences[:num_samples]
    weights: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": True, "strategy": "channel"}
    if scheme.group_size is not None:
        weights |= {"strategy": "group", "group_size": scheme.group_size}
    ignored = [*([] if settings.has_head else ["lm_head"]), *(f"re:.*{name}$" for name in settings.ignored)]
    with (
        new_directory(target, can_replace=can_replace, needed_bytes=spec.num_bytes) as staging,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-layers-") as scratch,
    ):
        torch.manual_seed(seed)
        model = _load(source, spec, Path(scratch), max_memory_bytes)
        rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences]
        oneshot(
            model=model,
            dataset=Dataset.from_list(rows),
            processor=PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json")),  # asked for, and not used
            recipe=GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=ignored),
            num_calibration_samples=len(rows),
            max_seq_length=_MAX_TOKENS,
            log_dir=None,
        )
        with warnings.catch_warnings():  # its weights are in this process, whatever llm-compressor calls that
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            model.save_pretrained(str(staging), save_compressed=True)
        copy_text_files(source, staging)
        write_json(staging / "config.json", json.loads((staging / "config.json").read_bytes()))
        recipe = {
            "scheme": settings.scheme,
            "method": "gptq",
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "head": settings.has_head,
            "ignored": list(settings.ignored),
            "calibration_sha256": sha256_of(calibration),
            "num_samples": len(sequences),
            "seed": seed,
        }
        write_recipe(staging, source, "quantize", recipe)


def _load(source: Path, spec: ModelSpec, scratch: Path, max_memory_bytes: int | None) -> PreTrainedModel:
    """The whole model as transformers loads it, what does not fit into memory left in its files, or in `scratch`."""
    room = psutil.virtual_memory().available - _RESERVED_BYTES if max_memory_bytes is None else max_memory_bytes
    settings: dict[str, Any] = {"dtype": spec.dtype, "local_files_only": True, "trust_remote_code": False}
    if spec.num_bytes <= room:
        return AutoModelForCausalLM.from_pretrained(str(source), **settings)
    with load_offloaded_model():
        return AutoModelForCausalLM.from_pretrained(
            str(source), device_map="auto", max_memory={"cpu": max(0, room)}, offload_folder=str(scratch), **settings
        )
