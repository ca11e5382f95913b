"""What turns an embedder's token vectors into one vector for each text: the modules after its Transformer, in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serve_app.checkpoints.checkpoint_json import damaged, shown
from serve_app.checkpoints.safetensors_header import TensorHeader, read_safetensors_header
from serve_app.checkpoints.sentence_modules import (
    TRANSFORMER,
    ModuleEntry,
    module_config,
    read_module_entries,
    read_sentence_config,
)
from serve_app.errors import ConfigError

TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"  # what modules read and write
POOLINGS = {  # sentence-transformers' names for them, and ours
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
ACTIVATIONS = (  # of torch.nn, made without arguments
    "CELU",
    "ELU",
    "GELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "Tanhshrink",
)
_KINDS = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
_OLD_KEYS = {  # of pooling, in the order in which several are joined
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_Value = TypeVar("_Value", bool, str)


@dataclass(frozen=True, slots=True)
class PoolStep:
    """Token vectors to one vector; those of several modes stand one after the other."""

    modes: tuple[str, ...]
    includes_prompt: bool = True


@dataclass(frozen=True, slots=True)
class DenseStep:
    """A Dense module of sentence-transformers."""

    directory: Path
    num_inputs: int
    num_outputs: int
    has_bias: bool
    activation: str  # name in torch.nn
    is_residual: bool = False
    works_on: str = SENTENCE


@dataclass(frozen=True, slots=True)
class LayerNormStep:
    """A LayerNorm module of sentence-transformers."""

    directory: Path
    size: int


@dataclass(frozen=True, slots=True)
class NormalizeStep:
    """Vectors of length one."""

    works_on: str = SENTENCE


@dataclass(frozen=True, slots=True)
class CutStep:
    """The first numbers of each vector."""

    size: int


HeadStep = PoolStep | DenseStep | LayerNormStep | NormalizeStep | CutStep


@dataclass(frozen=True, slots=True)
class EmbeddingHead:
    """The steps, and the size of the vectors that they end in."""

    steps: tuple[HeadStep, ...]
    size: int

    @property
    def poolings(self) -> list[PoolStep]:
        """Its poolings."""
        return [step for step in self.steps if isinstance(step, PoolStep)]


@dataclass(frozen=True, slots=True)
class HeadChoices:
    """What a Serve file says of the vectors; None: as the checkpoint says."""

    pooling: str | None = None
    normalize: bool | None = None


def plain_head(pooling: str, size: int, choices: HeadChoices) -> EmbeddingHead:
    """The head of a directory without modules."""
    return EmbeddingHead(tuple(_chosen([PoolStep((pooling,))], choices)), size)


def read_head(source_dir: Path, hidden_size: int, choices: HeadChoices) -> EmbeddingHead:
    """The head that modules.json names. Raises ConfigError for a module that is not served."""
    steps = [step for entry in read_module_entries(source_dir)[1:] for step in _read_module(source_dir, entry)]
    if not any(isinstance(step, PoolStep) for step in steps):
        raise ConfigError(f"source={source_dir}: modules.json names no Pooling, so there is no vector for a text")
    steps = _chosen(steps, choices)
    size = _checked_size(source_dir, steps, hidden_size)
    cut = read_sentence_config(source_dir).get("truncate_dim")
    if type(cut) is int and 0 < cut < size:
        steps, size = [*steps, CutStep(cut)], cut
    return EmbeddingHead(tuple(steps), size)


def check_modules(source_dir: Path) -> None:
    """Raises ConfigError that names the first module of modules.json that is not served, before anything is read."""
    for index, entry in enumerate(read_module_entries(source_dir)):
        if entry.is_custom or entry.kind not in (TRANSFORMER, *_KINDS):
            raise _not_served(source_dir, entry)
        if (entry.kind == TRANSFORMER) != (index == 0):
            raise ConfigError(
                f"{source_dir}/modules.json: {entry.kind} stands in place {index}; begin with one Transformer"
            )


def _read_module(source_dir: Path, entry: ModuleEntry) -> list[HeadStep]:
    match entry.kind:
        case "Pooling":
            return [_read_pooling(source_dir, entry)]
        case "Dense":
            return [_read_dense(source_dir, entry)]
        case "LayerNorm":
            return [_read_layer_norm(source_dir, entry)]
        case "Normalize":
            return [_read_normalize(source_dir, entry)]
        case _:  # Dropout, which is for training only
            return []


def _not_served(source_dir: Path, entry: ModuleEntry) -> ConfigError:
    why = "is code of its own, which is never run" if entry.is_custom else "is not served"
    return ConfigError(
        f"{source_dir}/modules.json names a module {shown(entry.type_name if entry.is_custom else entry.kind)}, which "
        f"{why}; use a model of {TRANSFORMER}, {', '.join(_KINDS)}"
    )


def _read_pooling(source_dir: Path, entry: ModuleEntry) -> PoolStep:
    values = module_config(source_dir, entry)
    path = source_dir / entry.path / "config.json"
    given = values.get("pooling_mode")
    if given is None:
        given = [mode for key, mode in _OLD_KEYS.items() if values.get(key) is True] or ["mean"]
    modes = given if isinstance(given, list) else [given]
    known = [mode for mode in modes if isinstance(mode, str) and mode in POOLINGS]
    if not modes or len(known) < len(modes):
        raise ConfigError(f"{path}: pooling_mode={shown(given)} is not served; {', '.join(POOLINGS)} are")
    return PoolStep(tuple(POOLINGS[mode] for mode in known), _value(values, "include_prompt", True, path))


def _read_dense(source_dir: Path, entry: ModuleEntry) -> DenseStep:
    values = module_config(source_dir, entry)
    directory = source_dir / entry.path
    path = directory / "config.json"
    name = _value(values, "activation_function", "torch.nn.modules.activation.Tanh", path)
    activation = name.rpartition(".")[2]
    if not name.startswith("torch.") or activation not in ACTIVATIONS:
        raise ConfigError(
            f"{path}: activation_function={shown(name)} is not served; those of torch.nn without arguments are"
        )
    header = _read_weights(directory)
    weight = _matrix(header, "linear.weight", directory)
    is_residual = _value(values, "use_residual", False, path)
    if is_residual and weight.shape[0] != weight.shape[1]:
        _matrix(header, "residual.weight", directory)
    num_outputs, num_inputs = weight.shape
    has_bias, works_on = "linear.bias" in header, _works_on(values, path)
    return DenseStep(directory, num_inputs, num_outputs, has_bias, activation, is_residual, works_on)


def _read_layer_norm(source_dir: Path, entry: ModuleEntry) -> LayerNormStep:
    module_config(source_dir, entry)
    directory = source_dir / entry.path
    header = _read_weights(directory)
    weight = header.get("norm.weight")
    if weight is None or "norm.bias" not in header or len(weight.shape) != 1:
        raise damaged(directory / "model.safetensors", "no norm.weight or norm.bias")
    return LayerNormStep(directory, weight.shape[0])


def _read_normalize(source_dir: Path, entry: ModuleEntry) -> NormalizeStep:
    path = source_dir / entry.path / "config.json"
    has_config = entry.path != "" and path.is_file()
    return NormalizeStep(_works_on(module_config(source_dir, entry) if has_config else {}, path))


def _read_weights(directory: Path) -> dict[str, TensorHeader]:
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{directory} has no model.safetensors; convert its weights to safetensors")
    return read_safetensors_header(weights)


def _matrix(header: dict[str, TensorHeader], name: str, directory: Path) -> TensorHeader:
    if name not in header or len(header[name].shape) != 2:
        raise damaged(directory / "model.safetensors", f"no {name}")
    return header[name]


def _works_on(values: dict[str, object], path: Path) -> str:
    """What a module reads and writes."""
    reads = _value(values, "module_input_name", SENTENCE, path)
    writes = reads if values.get("module_output_name") is None else _value(values, "module_output_name", reads, path)
    if reads not in (TOKENS, SENTENCE) or reads != writes:
        raise ConfigError(
            f"{path}: a module that reads {shown(reads)} and writes {shown(writes)} is not served; let both be "
            f"{TOKENS} or {SENTENCE}"
        )
    return reads


def _value(values: dict[str, object], key: str, default: _Value, path: Path) -> _Value:
    value = values.get(key, default)
    if not isinstance(value, type(default)):
        raise damaged(path, f"{key}={shown(value)}")
    return value


def _chosen(steps: list[HeadStep], choices: HeadChoices) -> list[HeadStep]:
    """The steps as the Serve file wants them."""
    if choices.pooling is not None:
        steps = [
            PoolStep((choices.pooling,), one.includes_prompt) if isinstance(one, PoolStep) else one for one in steps
        ]
    is_last = steps[-1] == NormalizeStep()
    if choices.normalize is True and not is_last:
        return [*steps, NormalizeStep()]
    return steps[:-1] if choices.normalize is False and is_last else steps


def _checked_size(source_dir: Path, steps: Sequence[HeadStep], hidden_size: int) -> int:
    """The size of the last vectors. Raises ConfigError when a step does not fit what comes before it."""
    sizes: dict[str, int] = {TOKENS: hidden_size}
    for step in steps:
        if isinstance(step, PoolStep):
            sizes[SENTENCE] = sizes[TOKENS] * len(step.modes)
        elif isinstance(step, DenseStep):
            _check_fit(source_dir, step.directory, sizes.get(step.works_on), step.num_inputs)
            sizes[step.works_on] = step.num_outputs
        elif isinstance(step, LayerNormStep):
            _check_fit(source_dir, step.directory, sizes.get(SENTENCE), step.size)
    return sizes[SENTENCE]


def _check_fit(source_dir: Path, directory: Path, given: int | None, wanted: int) -> None:
    if given != wanted:
        comes = "nothing: no Pooling stands before it" if given is None else f"those of {given}"
        raise ConfigError(
            f"source={source_dir}: {directory.name} takes vectors of {wanted}, and gets {comes}; correct modules.json, "
            "or pooling in the YAML"
        )
