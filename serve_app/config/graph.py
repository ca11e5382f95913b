"""The settings of a graph: steps that join models, as `args` of an application of its own."""

import difflib
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from serve_app.config.base import ConfigModel
from serve_app.config.steps import Step

INPUT_NAMES = ("text", "texts")  # what steps call that which the client sends

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORK = ("chain", "model", "choose")
_GENERATION = ("max_tokens", "temperature", "is_chat")


class GraphStepConfig(ConfigModel):
    """One step: exactly one of a chain, a model, or a choice between models by another step's label."""

    name: str
    """What other steps and `output` call it."""
    input: str | None = None
    """The step whose value it takes; null: what the client sends."""
    chain: list[Step] | None = None
    """Steps on texts, as in a model's preprocessing."""
    model: str | None = None
    """The model that it calls, by the name that clients use."""
    choose: str | None = None
    """The step whose label decides which model is called."""
    cases: dict[str, str] = Field(default_factory=dict)
    """Label -> model, beside choose."""
    default: str | None = None
    """Model for any other label, beside choose."""
    max_tokens: PositiveInt = 256
    """Longest answer of a model that generates; cut to what its context has room for."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of what a model generates; 0: greedy. [none]"""
    is_chat: bool = False
    """The text becomes a user's message in the model's chat template."""

    @field_validator("name")
    @classmethod
    def _is_plain_name(cls, value: str) -> str:
        if _NAME.fullmatch(value) is None or value in INPUT_NAMES:
            raise ValueError(
                f"name={value[:80]!r} cannot be a step's name; use letters, digits, '.', '_' and '-', "
                "and neither text nor texts: they name what the client sends"
            )
        return value

    @model_validator(mode="after")
    def _does_one_thing(self) -> "GraphStepConfig":
        problem = _step_problem(self)
        if problem is not None:
            raise ValueError(f"step {self.name}: {problem}")
        return self

    @property
    def models(self) -> list[str]:
        """The models it calls."""
        names = [self.model, *self.cases.values(), self.default]
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def sources(self) -> list[str]:
        """The steps that must be done before; what the client sends is none."""
        names = [self.input, self.choose]
        return [name for name in names if name is not None and name not in INPUT_NAMES]


class GraphOutputConfig(ConfigModel):
    """A step whose value is shown, and the name that it is shown under."""

    name: str | None
    """What the result is called; null: the graph has this one, which needs no name."""
    step: str
    """The step whose value it is."""


def _parse_output(value: object) -> object:
    """Outputs of a step's name, a list of them, or names for them."""
    if isinstance(value, str):
        return [{"name": None, "step": value}]
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return [{"name": one, "step": one} for one in value]
    if isinstance(value, dict) and value and all(isinstance(one, str) for pair in value.items() for one in pair):
        return [{"name": name, "step": step} for name, step in value.items()]
    if isinstance(value, list) and value and all(_is_output(one) for one in value):
        return value  # it has been read before
    raise ValueError("output is a step's name, a list of them, or `name: step` lines; write one of these")


def _is_output(value: object) -> bool:
    return isinstance(value, GraphOutputConfig) or (isinstance(value, dict) and value.keys() == {"name", "step"})


class GraphConfig(ConfigModel):
    """`args` of a graph's application."""

    name: str
    """What clients write as "model"."""
    input: Literal["text", "texts"] = "text"
    """text: each text by itself; texts: all of a request together."""
    steps: list[GraphStepConfig] = Field(min_length=1, max_length=64)
    """What is done, in any order: each step waits for those that it names."""
    output: Annotated[list[GraphOutputConfig], BeforeValidator(_parse_output)]
    """What the client gets: a step's name, a list of them, or `name: step` lines."""
    timeout_s: PositiveFloat = 60.0
    """How long a request may take."""

    @field_validator("name")
    @classmethod
    def _is_plain_name(cls, value: str) -> str:
        if any(_NAME.fullmatch(part) is None for part in value.split("/", 1)) or len(value) > 64:
            raise ValueError(
                f"name={value[:80]!r} cannot be a graph's name; use at most 64 letters, digits, '.', '_', '-' "
                "beginning with a letter or digit, with at most one '/'"
            )
        return value

    @model_validator(mode="after")
    def _is_a_graph(self) -> "GraphConfig":
        problem = _graph_problem(self)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def models(self) -> list[str]:
        """All models that its steps call."""
        return list(dict.fromkeys(name for step in self.steps for name in step.models))

    @property
    def ordered_steps(self) -> list[GraphStepConfig]:
        """The steps, each after those that it needs."""
        ordered: dict[str, GraphStepConfig] = {}
        waiting = list(self.steps)
        while waiting:
            due = [step for step in waiting if all(source in ordered for source in step.sources)]
            assert due, "a circle is refused when the settings are read"
            ordered |= {step.name: step for step in due}
            waiting = [step for step in waiting if step.name not in ordered]
        return list(ordered.values())

    @property
    def has_one_result(self) -> bool:
        """Whether it gives one value, which has no name."""
        return self.output[0].name is None


def _step_problem(step: GraphStepConfig) -> str | None:
    given = [name for name in _WORK if getattr(step, name) is not None]
    if len(given) != 1:
        many = f"has {' and '.join(given)}" if given else "does nothing"
        return f"{many}; give it one of {', '.join(_WORK)}"
    if step.chain is not None and not step.chain:
        return "chain is empty; name steps, or remove it"
    if step.choose is not None and len({*step.cases.values(), step.default} - {None}) < 2:
        return "choose needs two models or more to choose from; write cases: {label: model} and default: model"
    if step.choose is None and (step.cases or step.default is not None):
        return f"{'cases' if step.cases else 'default'} has no effect without choose; remove it, or name a step"
    set_ones = [name for name in _GENERATION if name in step.model_fields_set]
    if step.chain is not None and set_ones:
        return f"{set_ones[0]} has no effect on a chain; remove it"
    return None


def _graph_problem(config: GraphConfig) -> str | None:
    names = [step.name for step in config.steps]
    for name in names:
        if names.count(name) > 1:
            return f"steps: name={name!r} is given more than once; give each step its own name"
    for step in config.steps:
        for setting, source in (("input", step.input), ("choose", step.choose)):
            if source is None or source in names or (setting == "input" and source == config.input):
                continue
            way_out = _way_out(source, names, config.input if setting == "input" else None)
            return f"step {step.name}: {setting}={source!r} is not a step; {way_out}"
    shown = [output.step for output in config.output]
    for output in config.output:
        if output.step not in names:
            return f"output: {output.step!r} is not a step; {_way_out(output.step, names, None)}"
        if output.name is not None and (not output.name or len(output.name) > 64):
            return f"output: {output.name[:80]!r} cannot be a result's name; use 1 to 64 characters"
    circle = _circle(config.steps)
    if circle:
        return f"steps: {' <- '.join(circle)} go round in a circle; let one of them begin with {config.input}"
    used = {source for step in config.steps for source in step.sources} | set(shown)
    unused = [name for name in names if name not in used]
    if unused:
        return f"step {unused[0]}: nothing uses it; name it in output, or remove it"
    return None


def _way_out(given: str, names: list[str], input_name: str | None) -> str:
    choices = [*names, *([input_name] if input_name is not None else [])]
    closest = difflib.get_close_matches(given, choices, n=1)
    if closest:
        return f"did you mean {closest[0]}?"
    sent = f"; {input_name} is what the client sends" if input_name is not None else ""
    return f"use one of {', '.join(choices)}{sent}"


def _circle(steps: list[GraphStepConfig]) -> list[str]:
    """Steps that wait for one another, in order; empty when there are none."""
    sources = {step.name: step.sources for step in steps}
    while True:
        done = [name for name, needed in sources.items() if not any(source in sources for source in needed)]
        if not done:
            break
        for name in done:
            del sources[name]
    if not sources:
        return []
    path = [next(iter(sources))]
    while len(set(path)) == len(path):
        path.append(next(source for source in sources[path[-1]] if source in sources))
    return path[path.index(path[-1]) :]
