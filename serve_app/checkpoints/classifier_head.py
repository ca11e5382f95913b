"""What a classifier's or cross-encoder's files say of its outputs: how many, their labels, and what numbers mean."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.architectures.lookup import EMBEDDERS
from serve_app.checkpoints.checkpoint_json import shown
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.module_files import read_labels
from serve_app.checkpoints.sentence_modules import (
    TRANSFORMER,
    read_model_kind,
    read_module_entries,
    read_sentence_config,
)
from serve_app.errors import ConfigError

_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid", "Tanh": "tanh"}
_ENCODER_HEADS = ("classifier.out_proj.weight", "classifier.weight")
_DECODER_HEADS = ("score.weight",)


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """The outputs of a classifier or cross-encoder."""

    num_labels: int
    labels: tuple[str, ...]
    is_multi_label: bool
    activation: str  # softmax, sigmoid, tanh, or identity: the number itself


def read_classifier_head(
    spec: ModelSpec, task: str, config: dict[str, object], source_dir: Path, is_multi_label: bool | None
) -> ClassifierHead:
    """The head of a checkpoint whose config.json says `config`. Raises ConfigError when it has none that is served."""
    num_labels = _num_labels(spec, task)
    _check_modules(source_dir, task)
    if task == "score" and num_labels != 1:
        raise ConfigError(
            f"task=score needs a cross-encoder with one output, but source={source_dir} has {num_labels}; "
            "set task: classify"
        )
    path = spec.source_dir / "config.json"
    problem = config.get("problem_type")
    if is_multi_label is None:
        is_multi_label = problem == "multi_label_classification"
    activation = "identity" if problem == "regression" else "softmax"
    if num_labels == 1:
        activation = _lone_activation(config, source_dir, path) or (
            "sigmoid" if problem != "regression" else "identity"
        )
    return ClassifierHead(num_labels, _labels(path, config, num_labels), is_multi_label, activation)


def _num_labels(spec: ModelSpec, task: str) -> int:
    facts = EMBEDDERS[spec.model_type].encoder
    assert facts is not None
    if not facts.can_classify:
        raise ConfigError(f"task={task} is not served for model_type={spec.model_type}; set task: embed")
    heads = _DECODER_HEADS if facts.head_pools == "last" else _ENCODER_HEADS
    others = [name for name in spec.architectures if not name.endswith("ForSequenceClassification")]
    found = next((spec.tensors[name] for name in heads if name in spec.tensors), None)
    if found is None or (spec.architectures and len(others) == len(spec.architectures)):
        has = f"is a {others[0]}" if others else f"has no tensor {heads[-1]}"
        raise ConfigError(
            f"task={task} needs a classifier, but source={spec.source_dir} {has}; "
            "give a model with a sequence classification head, or set task: embed"
        )
    return found.shape[0]


def _check_modules(source_dir: Path, task: str) -> None:
    if read_model_kind(source_dir) != "CrossEncoder":
        return
    for entry in read_module_entries(source_dir):
        if entry.kind != TRANSFORMER or entry.is_custom:
            raise ConfigError(
                f"{source_dir}/modules.json names a module {shown(entry.kind)}, which is not served for task={task}; "
                "use a cross-encoder of a Transformer alone"
            )


def _lone_activation(config: dict[str, object], source_dir: Path, path: Path) -> str | None:
    """What sentence-transformers makes of the one output; None where the files do not say."""
    whole, section = read_sentence_config(source_dir), config.get("sentence_transformers")
    name = whole.get("activation_fn") if read_model_kind(source_dir) == "CrossEncoder" else None
    key = f"{source_dir}: activation_fn"
    if name is None and isinstance(section, dict):
        name, key = section.get("activation_fn"), f"{path}: sentence_transformers.activation_fn"
    if name is None:
        name, key = config.get("sbert_ce_default_activation_function"), f"{path}: sbert_ce_default_activation_function"
    if name is None:
        return None
    kind = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.") else ""
    if kind not in _ACTIVATIONS:
        raise ConfigError(f"{key}={shown(name)} is not served; torch.nn's {', '.join(_ACTIVATIONS)} are")
    return _ACTIVATIONS[kind]


def _labels(path: Path, config: dict[str, object], num_labels: int) -> tuple[str, ...]:
    labels = read_labels(path, config) or [f"LABEL_{index}" for index in range(num_labels)]
    if len(labels) != num_labels:
        raise ConfigError(
            f"{path}: id2label names {len(labels)} labels, and the classifier has {num_labels} outputs; correct it"
        )
    return tuple(labels)
