"""Plain nn.Modules, such as the text classifier: quantized, pruned by magnitude, and measured.

A module's directory names its class in config.json (`architecture`), as `rayshard train` writes it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from serve_app.checkpoints.checkpoint_json import read_json
from serve_app.checkpoints.module_files import MODULE_METHOD, SCALE_SUFFIX, labels_of, read_module_tensors
from serve_app.checkpoints.weight_files import find_weight_files
from serve_app.compress.artifact import WeightWriter, copy_text_files, new_directory, write_json
from serve_app.compress.evaluate import Labelling
from serve_app.compress.quantize import QuantizeSettings
from serve_app.compress.recipe import write_recipe
from serve_app.compress.report import Size
from serve_app.compress.schemes import nearest_numbers, scheme_of
from serve_app.engine.module_loader import load_module_stage
from serve_app.errors import ConfigError
from serve_app.models.batch_stage import BatchStage
from serve_app.models.torch_model import build_module
from serve_app.training.csv_rows import LabelledText
from serve_app.types.shards import BatchModelSettings, ShardSpec

SCHEMES = ("int8", "int8_weight_only", "power_of_two")
_BATCH_TEXTS = 64


def is_module(directory: Path) -> bool:
    """Whether a directory holds a plain nn.Module, not a model of transformers."""
    path = directory / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def quantize_module(source: Path, target: Path, settings: QuantizeSettings, *, can_replace: bool = False) -> list[str]:
    """Write a copy whose matrices are 8 bits; gives their names. Raises ConfigError."""
    if settings.scheme not in SCHEMES:
        raise ConfigError(f"--scheme {settings.scheme} is not there for plain modules; use {', '.join(SCHEMES)}")
    scheme_of(settings.scheme, settings.group_size)
    config = _read_dense_config(source)
    embeddings = _embedding_names(source, config)
    quantized: list[str] = []

    def encode(name: str, tensor: Tensor) -> dict[str, Tensor]:
        module = name.rpartition(".")[0]
        is_left = any(module == one or module.endswith(f".{one}") or name == one for one in settings.ignored)
        if not _is_matrix(tensor) or is_left or (name in embeddings and not settings.has_embedding):
            return {name: tensor}
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{name} holds numbers that are not finite; give a sound model")
        quantized.append(name)
        weight = nearest_numbers(tensor, settings.scheme, scheme_of(settings.scheme, None), torch.float32)
        return {name: weight.values, f"{name}{SCALE_SUFFIX}": weight.scales}

    def finish(changed: dict[str, Any]) -> Mapping[str, Any]:
        if not quantized:
            raise ConfigError(f"{source} has no matrix that could be quantized; ignore less, or give --embedding")
        kernel = "int8" if settings.scheme == "int8" else "int8_weight_only"
        changed["quantization_config"] = {"quant_method": MODULE_METHOD, "kernel": kernel, "parameters": quantized}
        return {
            "scheme": settings.scheme,
            "method": "round to nearest",
            "bits": 8,
            "embedding": settings.has_embedding,
            "ignored": list(settings.ignored),
        }

    _rewrite(source, target, config, "quantize", encode, finish, can_replace=can_replace)
    return quantized


def prune_module(source: Path, target: Path, sparsity: float, *, can_replace: bool = False) -> float:
    """Write a copy in which this share of each matrix, the numbers nearest to zero, is zero; gives the share of all.

    Magnitude pruning (Han et al., arXiv:1506.02626), without training after it. Nothing gets smaller or faster by it.
    """
    if not 0 < sparsity < 1:
        raise ConfigError(f"--sparsity {sparsity} is not a share; give a number between 0 and 1")
    config = _read_dense_config(source)
    counts = {"zero": 0, "all": 0}

    def encode(name: str, tensor: Tensor) -> dict[str, Tensor]:
        counts["all"] += tensor.numel()
        if _is_matrix(tensor):
            count = int(sparsity * tensor.numel())
            smallest = tensor.abs().flatten().topk(count, largest=False, sorted=False).indices
            tensor = tensor.flatten().index_fill(0, smallest, 0).view(tensor.shape)
            counts["zero"] += count
        return {name: tensor}

    def finish(_changed: dict[str, Any]) -> Mapping[str, Any]:
        return {"method": "magnitude", "sparsity": sparsity}

    _rewrite(source, target, config, "prune", encode, finish, can_replace=can_replace)
    return counts["zero"] / counts["all"]


def label_texts(original: Path, model: Path, rows: Sequence[LabelledText]) -> Labelling:
    """Both models on labelled texts. Raises ConfigError unless they are text classifiers with the same labels."""
    labels = labels_of(original)
    if not labels or labels_of(model) != labels:
        raise ConfigError(f"{model} and {original} must be text classifiers with the same labels (id2label)")
    spare = sorted({row.label for row in rows} - set(labels))
    if spare:
        raise ConfigError(f"the texts have a label {spare[0][:80]!r} that the model does not know; leave it out")
    token_ids = encode_texts(original, [row.text for row in rows])
    theirs, ours = _log_probabilities(original, token_ids), _log_probabilities(model, token_ids)
    truth = torch.tensor([labels.index(row.label) for row in rows])
    return Labelling(
        num_right=int((ours.argmax(1) == truth).sum()),
        original_num_right=int((theirs.argmax(1) == truth).sum()),
        num_texts=len(rows),
        agreement=float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
        kl=float((theirs.exp() * (theirs - ours)).sum(dim=1).mean()),
    )


def measure_module_size(directory: Path, num_weights: int) -> Size:
    """The size of a module's tensors by its parts; they stand for `num_weights` weights of the original."""
    parts: dict[str, int] = {}
    for name, tensor in read_module_tensors(directory).items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + tensor.num_bytes
    total = sum(parts.values())
    return Size(total, parts, num_weights, 8 * total / num_weights)


def count_module_weights(directory: Path) -> int:
    """Numbers of an unquantized module."""
    return sum(one.num_elements for one in read_module_tensors(directory).values())


def _read_dense_config(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = dict(read_json(source / "config.json"))
    if config.get("quantization_config") is not None:
        raise ConfigError(f"{source} is quantized already; give the original model")
    return config


def _rewrite(
    source: Path,
    target: Path,
    config: dict[str, Any],
    step: str,
    encode: Callable[[str, Tensor], dict[str, Tensor]],
    finish: Callable[[dict[str, Any]], Mapping[str, Any]],
    *,
    can_replace: bool,
) -> None:
    """Write the tensors that replace each one, and the config that `finish` has changed."""
    num_bytes = sum(one.num_bytes for one in read_module_tensors(source).values())
    with new_directory(target, can_replace=can_replace, needed_bytes=num_bytes) as staging:
        writer = WeightWriter(staging)
        for file in find_weight_files(source):
            for name, tensor in tqdm(sorted(load_file(str(file)).items()), desc=step, unit="tensor", disable=None):
                for own_name, part in encode(name, tensor).items():
                    writer.add(own_name, part)
        writer.close()
        done = finish(config)
        write_json(staging / "config.json", config)
        copy_text_files(source, staging)
        write_recipe(staging, source, step, done)


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.is_floating_point()


def _embedding_names(source: Path, config: Mapping[str, Any]) -> set[str]:
    """Parameters that embeddings look rows up in, by the class itself."""
    module = build_module(str(config["architecture"]), module_arguments(config, source))
    embeddings = [name for name, one in module.named_modules() if isinstance(one, torch.nn.Embedding)]
    return {f"{name}.weight" for name in embeddings}


def module_arguments(config: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The arguments of the class that a module's config.json names. Raises ConfigError."""
    arguments = config.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ConfigError(f"{source / 'config.json'}: arguments are not an object; correct it")
    return arguments


def encode_texts(directory: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, by the tokenizer of a module. Raises ConfigError when it has none."""
    return [one.ids for one in _tokenizer_of(directory).encode_batch(list(texts))]


def unknown_id_of(directory: Path) -> int | None:
    """The token that a module's tokenizer gives for a word that it does not know; None: it has none."""
    tokenizer = _tokenizer_of(directory)
    name = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(name) if isinstance(name, str) else None


def _tokenizer_of(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{directory} has no tokenizer.json; only modules that take texts can be measured on them")
    return Tokenizer.from_file(str(path))


@torch.inference_mode()
def _log_probabilities(directory: Path, token_ids: Sequence[list[int]]) -> Tensor:
    """Of the labels, [B, C] float64, by the stage that shards run."""
    stage = load_classifier(directory)
    found = []
    for first in range(0, len(token_ids), _BATCH_TEXTS):
        batch = token_ids[first : first + _BATCH_TEXTS]
        flat = torch.tensor([token for one in batch for token in one], dtype=torch.int64)
        lengths = torch.tensor([len(one) for one in batch])
        found.append(stage.forward({"input_ids": flat, "lengths": lengths}, None)["logits"])
    return torch.cat(found).double().log_softmax(dim=1)


def load_classifier(directory: Path) -> BatchStage:
    """A whole module of input_ids and lengths to logits, as a shard runs it. Raises ConfigError when it is another."""
    config = read_json(directory / "config.json")
    settings = BatchModelSettings(
        name=directory.name,
        source_dir=str(directory),
        task="classify",
        dtype="auto",
        shard=ShardSpec(0, 1, 0, 1, 0, 0),
        architecture=str(config["architecture"]),
        arguments=module_arguments(config, directory),
    )
    stage = load_module_stage(settings, torch.device("cpu"))
    if set(stage.inputs) != {"input_ids", "lengths"} or "logits" not in stage.outputs:
        raise ConfigError(
            f"{directory}: only modules of input_ids and lengths to logits can be measured on texts, or teach"
        )
    return stage
