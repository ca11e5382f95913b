"""Whether the steps of a graph fit together: what flows on each edge, before anything is loaded."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from serve_app.config.graph import GraphConfig, GraphStepConfig
from serve_app.config.model import ModelConfig
from serve_app.preprocessing.chain import follow_chain
from serve_app.types.graphs import ValueKind
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import TensorSpec

_GIVES: dict[str, ValueKind] = {"generate": "text", "embed": "embedding", "classify": "label", "predict": "tensors"}
_TEXT_INPUTS = {"input_ids", "lengths"}


@dataclass(frozen=True, slots=True)
class Kind:
    """What one edge carries: a value, or a list with one for each text."""

    what: ValueKind | None  # None: not to be told before the models are loaded
    is_list: bool = False

    def __str__(self) -> str:
        if self.what is None:
            return "a value of unknown kind"
        return f"{self.what}s" if self.is_list and self.what not in ("tensors", "json") else self.what


@dataclass(frozen=True, slots=True)
class ModelKinds:
    """What a graph must know of a model."""

    name: str
    task: str
    takes: str | None  # text, tensors; None: its class will say
    gives: ValueKind | None
    labels: list[str] | None = None  # None: its files will say
    vector_size: int | None = None  # of the one tensor that it takes
    embedding_size: int | None = None


def port_of_config(config: ModelConfig, labels: list[str] | None = None) -> ModelKinds:
    """A model of a Serve file, whose labels may be known from its files."""
    takes: str | None = "text"
    if config.architecture is not None:
        takes = _takes(config.inputs) if config.inputs is not None else None
    gives = _gives(config.task, config.postprocessing_gives)
    return ModelKinds(config.name, config.task, takes, gives, labels or None)


def port_of_description(model: ModelDescription) -> ModelKinds:
    """A model as its Router describes it."""
    takes = "text" if model.task == "generate" else _takes(model.inputs)
    if takes == "text" and not model.has_tokenizer:
        takes = "token ids"
    gives = _gives(model.task, model.postprocessing_gives)
    port = ModelKinds(model.name, model.task, takes, gives, model.labels or None)
    return replace(port, vector_size=_vector_size(model.inputs), embedding_size=model.embedding_size)


def check_graph(config: GraphConfig, models: Mapping[str, ModelKinds]) -> list[str]:
    """Every reason why the graph cannot run on these models."""
    return _Check(config, models).run()


def result_kind(config: GraphConfig, models: Mapping[str, ModelKinds]) -> str:
    """What one text comes to in a graph that has been checked: a kind, or "results" when there are several."""
    check = _Check(config, models)
    check.run()
    if not config.has_one_result:
        return "results"
    kind = check.kinds[config.output[0].step]
    is_one_each = config.input == "texts" and kind.is_list
    return str(replace(kind, is_list=False) if is_one_each else kind)


class _Check:
    """One walk along the steps."""

    def __init__(self, config: GraphConfig, models: Mapping[str, ModelKinds]) -> None:
        self._config = config
        self._models = models
        self._steps = {step.name: step for step in config.steps}
        self._problems: list[str] = []
        self.kinds: dict[str, Kind] = {}  # by step

    def run(self) -> list[str]:
        for step in self._config.ordered_steps:
            if step.chain is not None:
                self.kinds[step.name] = self._chain_kind(step)
            else:
                self.kinds[step.name] = self._models_kind(step)
        return self._problems

    def _given(self, step: GraphStepConfig) -> tuple[Kind, str]:
        """What the step gets, and from whom."""
        if step.input is None or step.input == self._config.input:
            return Kind("text", self._config.input == "texts"), "the request"
        return self.kinds[step.input], f"step {step.input}"

    def _chain_kind(self, step: GraphStepConfig) -> Kind:
        assert step.chain is not None
        given, giver = self._given(step)
        if given.what not in (None, "text"):
            self._problems.append(f"step {step.name}: chain takes text, but {giver} gives {given}")
        first = str(given) if given.what == "text" else ""
        end = follow_chain(step.chain, None, first=first, giver=giver, label=f"step {step.name}: chain")
        self._problems += end.problems
        if end.kind == "token_ids":
            self._problems.append(f"{end.giver} gives token_ids, but steps of a graph take text; remove it")
        is_list = end.kind == "texts" or (not end.kind and given.is_list)
        return Kind("text" if end.kind in ("text", "texts") else None, is_list)

    def _models_kind(self, step: GraphStepConfig) -> Kind:
        """Of a model, or of a choice between several."""
        given, giver = self._given(step)
        ports = [port for name in step.models if (port := self._port(step, name)) is not None]
        if step.choose is not None:
            self._check_choice(step)
        for port in ports:
            self._check_input(step, port, given, giver)
        kinds = {port.gives for port in ports if port.gives is not None}
        if len(kinds) > 1:
            told = ", ".join(f"{port.name} gives {port.gives}" for port in ports)
            self._problems.append(f"step {step.name}: cases must give the same kind, but {told}")
        self._check_settings(step, ports)
        return Kind(next(iter(kinds)) if len(kinds) == 1 else None, given.is_list)

    def _port(self, step: GraphStepConfig, name: str) -> ModelKinds | None:
        port = self._models.get(name)
        if port is None:
            closest = difflib.get_close_matches(name, self._models, n=1)
            way_out = f"did you mean {closest[0]}?" if closest else f"use one of {', '.join(self._models) or 'none'}"
            self._problems.append(f"step {step.name}: model={name} is not served by this file; {way_out}")
        elif port.task == "score":
            self._problems.append(f"step {step.name}: {name} scores pairs of texts, and a step has one text; use embed")
            return None
        return port

    def _check_input(self, step: GraphStepConfig, port: ModelKinds, given: Kind, giver: str) -> None:
        if port.takes is None or given.what is None:
            return
        fits = given.what == "text" if port.takes == "text" else given.what in ("embedding", "tensors")
        if port.takes == "token ids":
            self._problems.append(f"step {step.name}: {port.name} takes text, but has no tokenizer.json; add it")
        elif not fits:
            self._problems.append(f"step {step.name}: {port.name} takes {port.takes}, but {giver} gives {given}")
        elif given.what == "embedding" and step.input is not None and port.vector_size is not None:
            for name in self._steps[step.input].models:
                size = self._models[name].embedding_size if name in self._models else None
                if size is not None and size != port.vector_size:
                    sizes = f"{port.name} takes vectors of {port.vector_size}, but {name} gives {size} numbers"
                    self._problems.append(f"step {step.name}: {sizes}")

    def _check_choice(self, step: GraphStepConfig) -> None:
        assert step.choose is not None
        where = f"step {step.name}: choose"
        kind = self.kinds[step.choose]
        if kind.what not in (None, "label") or kind.is_list:
            self._problems.append(f"{where} takes one label, but step {step.choose} gives {kind}")
            return
        deciders = [self._models[name] for name in self._steps[step.choose].models if name in self._models]
        if any(port.labels is None for port in deciders):
            return
        labels = list(dict.fromkeys(label for port in deciders for label in port.labels or []))
        unknown = sorted(step.cases.keys() - set(labels))
        if unknown:
            self._problems.append(
                f"{where}: cases.{unknown[0]} is not a label of step {step.choose}; use {labels[:16]}"
            )
        uncovered = [label for label in labels if label not in step.cases]
        if uncovered and step.default is None:
            self._problems.append(f"{where}: nothing is chosen for label {uncovered[0]!r}; add it to cases, or default")

    def _check_settings(self, step: GraphStepConfig, ports: list[ModelKinds]) -> None:
        if not ports or any(port.task == "generate" for port in ports):
            return
        for name in ("max_tokens", "temperature", "is_chat"):
            if name in step.model_fields_set:
                message = f"{name} has no effect on task={ports[0].task}; remove it"
                self._problems.append(f"step {step.name}: {message}")


def _gives(task: str, postprocessing_gives: str | None) -> ValueKind | None:
    return "json" if postprocessing_gives == "json" else _GIVES.get(task)


def _takes(inputs: Mapping[str, object]) -> str:
    return "text" if inputs.keys() >= _TEXT_INPUTS else "tensors"


def _vector_size(inputs: Mapping[str, TensorSpec]) -> int | None:
    """Last dimension of a single input of rows, when it is fixed."""
    if len(inputs) != 1:
        return None
    shape = next(iter(inputs.values())).shape
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
