"""What an encoder's checkpoint says, without torch: its sizes, its head or its pooling, its labels."""

from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.architectures.lookup import EMBEDDERS
from serve_app.architectures.record import Architecture, EncoderFacts
from serve_app.checkpoints.checkpoint_json import damaged, read_json, read_json_list, shown
from serve_app.checkpoints.model_spec import ModelSpec, no_tensor_cut, read_checkpoint
from serve_app.checkpoints.module_files import read_labels
from serve_app.checkpoints.safetensors_header import read_safetensors_header
from serve_app.errors import ConfigError

_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last", "last": "last"}
_HEADS = ("classifier.weight", "classifier.out_proj.weight")


@dataclass(frozen=True, slots=True)
class ProjectionSpec:
    """A Dense module of sentence-transformers."""

    directory: Path
    num_inputs: int
    num_outputs: int
    has_bias: bool
    activation: str  # tanh or identity


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """One encoder's checkpoint, for one task."""

    spec: ModelSpec
    task: str
    max_tokens: int  # of one text, special tokens included
    has_token_types: bool
    pooling: str  # mean, cls or last
    is_normalized: bool
    projections: tuple[ProjectionSpec, ...]
    embedding_size: int
    num_labels: int
    labels: tuple[str, ...]
    is_multi_label: bool
    score_activation: str  # sigmoid or identity


@dataclass(frozen=True, slots=True)
class EncoderChoices:
    """What a Serve file says of an encoder; None: as the checkpoint says."""

    task: str
    max_model_len: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    is_multi_label: bool | None = None


def read_encoder_spec(choices: EncoderChoices, source_dir: Path) -> EncoderSpec:
    """The encoder in `source_dir` as it is to be served. Raises ConfigError."""
    spec = replace(read_checkpoint(source_dir, EMBEDDERS), is_tied=False)
    values = read_json(source_dir / "config.json")
    is_embedder = choices.task == "embed"
    if not is_embedder:
        _check_head(spec, choices)
    labels = read_labels(source_dir / "config.json", values)
    num_labels = 0 if is_embedder else _num_labels(spec)
    if choices.task == "score" and num_labels != 1:
        raise ConfigError(
            f"task=score needs a cross-encoder with one output, but source={source_dir} has {num_labels}; "
            "set task: classify"
        )
    pooling, is_normalized, projections = (
        _read_modules(source_dir, spec, choices) if is_embedder else ("cls", False, ())
    )
    return EncoderSpec(
        spec=spec,
        task=choices.task,
        max_tokens=_max_tokens(spec, source_dir, choices),
        has_token_types=_has_token_types(EMBEDDERS[spec.model_type], values),
        pooling=pooling,
        is_normalized=is_normalized,
        projections=projections,
        embedding_size=projections[-1].num_outputs if projections else spec.hidden_size,
        num_labels=num_labels,
        labels=tuple(labels[:num_labels] if len(labels) >= num_labels else _numbered(num_labels)),
        is_multi_label=_is_multi_label(choices, values),
        score_activation=_score_activation(values),
    )


def check_encoder(encoder: EncoderSpec, tensor: int, max_model_len: int | None) -> list[str]:
    """Why this encoder cannot be split over `tensor` ranks, or take texts of `max_model_len` tokens."""
    spec = encoder.spec
    if tensor > 1 and EMBEDDERS[spec.model_type].tensor_cut is None:
        return [no_tensor_cut(spec.model_type, tensor)]
    longest = _position_limit(spec)
    if max_model_len is not None and max_model_len > longest:
        return [f"max_model_len={max_model_len} is above the {longest} positions of the model; use at most that"]
    sizes = {"num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads}
    sizes["intermediate_size"] = spec.intermediate_size or spec.hidden_size
    for name, size in sizes.items():
        if size % tensor:
            return [f"parallel.tensor={tensor} does not divide {name}={size}; use a divisor of it"]
    return []


def _check_head(spec: ModelSpec, choices: EncoderChoices) -> None:
    if not _facts_of(spec).can_classify:
        raise ConfigError(f"task={choices.task} is not served for model_type={spec.model_type} yet; set task: embed")
    if not any(name in spec.tensors for name in _HEADS):
        raise ConfigError(
            f"task={choices.task} needs a classifier, but source={spec.source_dir} has no tensor {_HEADS[0]}; "
            "give a model with a sequence classification head, or set task: embed"
        )


def _facts_of(spec: ModelSpec) -> EncoderFacts:
    facts = EMBEDDERS[spec.model_type].encoder
    assert facts is not None
    return facts


def _num_labels(spec: ModelSpec) -> int:
    for name in reversed(_HEADS):
        if name in spec.tensors:
            return int(spec.tensors[name].shape[0])
    raise AssertionError("the head was checked")


def _numbered(number: int) -> list[str]:
    return [f"LABEL_{index}" for index in range(number)]


def _position_limit(spec: ModelSpec) -> int:
    """Tokens of the longest text that the position embeddings hold."""
    longest = spec.max_position_embeddings or 512
    if not _facts_of(spec).has_positions_after_padding:
        return longest
    padding = read_json(spec.source_dir / "config.json").get("pad_token_id", 1)
    return longest - (padding if isinstance(padding, int) else 1) - 1  # positions begin after the padding's


def _max_tokens(spec: ModelSpec, source_dir: Path, choices: EncoderChoices) -> int:
    limits = [_position_limit(spec)]
    path = source_dir / "sentence_bert_config.json"
    if choices.task == "embed" and path.is_file():
        own = read_json(path).get("max_seq_length")
        if isinstance(own, int) and own > 0:
            limits.append(own)
    return choices.max_model_len or min(limits)


def _has_token_types(architecture: Architecture, values: dict[str, object]) -> bool:
    default = architecture.sizes.num_token_types
    if default is None:
        return False
    number = values.get("type_vocab_size", default)
    return isinstance(number, int) and number > 1


def _is_multi_label(choices: EncoderChoices, values: dict[str, object]) -> bool:
    if choices.is_multi_label is not None:
        return choices.is_multi_label
    return values.get("problem_type") == "multi_label_classification"


def _score_activation(values: dict[str, object]) -> str:
    section = values.get("sentence_transformers")
    name = section.get("activation_fn") if isinstance(section, dict) else None
    return "identity" if isinstance(name, str) and name.endswith("Identity") else "sigmoid"


def _read_modules(
    source_dir: Path, spec: ModelSpec, choices: EncoderChoices
) -> tuple[str, bool, tuple[ProjectionSpec, ...]]:
    """Pooling, normalisation and projections, by modules.json where there is one."""
    pooling: str = _facts_of(spec).default_pooling
    is_normalized = False
    projections: list[ProjectionSpec] = []
    path = source_dir / "modules.json"
    has_modules = choices.task == "embed" and path.is_file()
    for entry in read_json_list(path) if has_modules else []:
        kind = str(entry.get("type", "")).rpartition(".")[2] if isinstance(entry, dict) else ""
        directory = source_dir / str(entry.get("path", "")) if isinstance(entry, dict) else source_dir
        if kind == "Transformer":
            continue
        if kind == "Pooling":
            pooling = _read_pooling(directory / "config.json")
        elif kind == "Normalize":
            is_normalized = True
        elif kind == "Dense":
            projections.append(_read_projection(directory))
        else:
            raise ConfigError(f"{path} names a module {shown(kind)}, which is not served; use a model without it")
    if choices.pooling is not None:
        pooling = choices.pooling
    return pooling, is_normalized if choices.normalize is None else choices.normalize, tuple(projections)


def _read_pooling(path: Path) -> str:
    values = read_json(path)
    mode = values.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else []
    for key, value in values.items():
        if key.startswith("pooling_mode_") and value is True:
            modes.append(key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token"))
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ConfigError(f"{path}: pooling {shown(', '.join(map(str, modes)))} is not served; set pooling in the YAML")
    return _POOLINGS[modes[0]]


def _read_projection(directory: Path) -> ProjectionSpec:
    path = directory / "config.json"
    values = read_json(path)
    name = str(values.get("activation_function", "")).rpartition(".")[2]
    if name not in ("Tanh", "Identity"):
        raise ConfigError(f"{path}: activation_function={shown(name)} is not served; Tanh and Identity are")
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{directory} has no model.safetensors; convert its weights to safetensors")
    header = read_safetensors_header(weights)
    if "linear.weight" not in header:
        raise damaged(weights, "no linear.weight")
    num_outputs, num_inputs = header["linear.weight"].shape
    return ProjectionSpec(directory, num_inputs, num_outputs, "linear.bias" in header, name.lower())
