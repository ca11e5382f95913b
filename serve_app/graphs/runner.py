"""Runs the steps of a graph: each as soon as what it needs is there, for all inputs of a request together."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from serve_app.backend.text_models import Call
from serve_app.backend.time_left import TimeLeft
from serve_app.config.graph import GraphConfig, GraphStepConfig
from serve_app.errors import InternalError, TimeoutExceededError, UnprocessableError
from serve_app.graphs.model_steps import ModelSteps, StepCall
from serve_app.graphs.values import cut, join, num_entries
from serve_app.preprocessing.chain import MAX_TEXTS, Chain, make_chain
from serve_app.preprocessing.model_entries import ranked
from serve_app.preprocessing.pii import Originals
from serve_app.preprocessing.text_pool import TextPool
from serve_app.types.chains import ChainValue, Redaction
from serve_app.types.graphs import GraphRequest, GraphResult, GraphRun, GraphValue

Values = list[GraphValue]  # one for each input


@dataclass(slots=True)
class _Request:
    """One request while it runs."""

    request: GraphRequest
    inputs: Values
    time_left: TimeLeft
    steps: dict[str, asyncio.Task[Values]] = field(default_factory=dict)
    num_tokens: int = 0
    redactions: list[list[Redaction]] = field(default_factory=list)  # of each input

    def keep(self, redactions: Sequence[list[Redaction]], indexes: Sequence[int]) -> None:
        """What a step has taken out of some of the inputs."""
        for index, found in zip(indexes, redactions, strict=True):
            self.redactions[index] += found


@dataclass(frozen=True, slots=True)
class _Made:
    """What a chain has made of one value, and what it has taken out."""

    value: GraphValue
    redactions: list[Redaction]


class GraphRunner:
    """Runs requests through the steps that `config` names."""

    def __init__(self, config: GraphConfig, models: ModelSteps, pool: TextPool) -> None:
        self._config = config
        self._steps = config.ordered_steps
        self._models = models
        self._pool = pool
        self._chains = {step.name: make_chain(step.chain) for step in config.steps if step.chain is not None}

    async def run(self, request: GraphRequest) -> GraphResult:
        """What the graph makes of a request's texts. Cancelling gives it up. Raises a RayshardError."""
        limit_s = self._config.timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                inputs, left = self._inputs(request.inputs), TimeLeft(request.time_left_s)
                run = _Request(request, inputs, left, redactions=[[] for _ in inputs])
                return await left.bound(self._run_steps(run))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutExceededError(
                f"the graph took longer than timeout_s={limit_s:g}; send less, or raise timeout_s"
            ) from error

    def _inputs(self, texts: Sequence[str]) -> Values:
        if self._config.input == "texts":
            return [GraphValue("text", is_list=True, texts=list(texts))]
        return [GraphValue("text", texts=[text]) for text in texts]

    async def _run_steps(self, run: _Request) -> GraphResult:
        try:
            async with asyncio.TaskGroup() as group:
                for step in self._steps:  # each after those that it waits for
                    run.steps[step.name] = group.create_task(self._run_step(step, run))
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        columns = [run.steps[output.step].result() for output in self._config.output]
        if run.request.restores_redactions:
            columns = [await self._pool.run(_restored, column, run.redactions) for column in columns]
        runs = [GraphRun([column[index] for column in columns]) for index in range(len(run.inputs))]
        names = [output.name for output in self._config.output if output.name is not None]
        return GraphResult(names, runs, self._config.input == "texts", run.num_tokens)

    async def _run_step(self, step: GraphStepConfig, run: _Request) -> Values:
        given = run.inputs
        if step.input is not None and step.input != self._config.input:
            given = await run.steps[step.input]
        if step.chain is not None:
            made = await self._pool.run_each(partial(_run_chain, self._chains[step.name]), given)
            run.keep([one.redactions for one in made], range(len(given)))
            return [one.value for one in made]
        if step.choose is None:
            assert step.model is not None
            values = await self._call(step, step.model, given, run, range(len(given)))
        else:
            values = await self._run_chosen(step, given, await run.steps[step.choose], run)
        return values

    async def _run_chosen(self, step: GraphStepConfig, given: Values, deciders: Values, run: _Request) -> Values:
        """The inputs of one model go together; the models run side by side."""
        places: dict[str, list[int]] = {}
        for index, decider in enumerate(deciders):
            places.setdefault(_chosen(step, decider), []).append(index)
        values: dict[int, GraphValue] = {}

        async def run_some(model: str, indexes: list[int]) -> None:
            made = await self._call(step, model, [given[index] for index in indexes], run, indexes)
            values.update(zip(indexes, made, strict=True))

        async with asyncio.TaskGroup() as group:
            for model, indexes in places.items():
                group.create_task(run_some(model, indexes))
        return [values[index] for index in range(len(given))]

    async def _call(
        self, step: GraphStepConfig, model: str, given: Values, run: _Request, indexes: Sequence[int]
    ) -> Values:
        """The model's answers to some of the request's inputs, whose places are `indexes`."""
        if not given:
            return []
        joined = join(given)
        if num_entries(joined) > MAX_TEXTS:
            raise UnprocessableError(
                f"step {step.name} has {num_entries(joined)} entries to run, and may have {MAX_TEXTS}; send less"
            )
        request = run.request
        call = Call(
            request.request_id,
            request.queue_timeout_s,
            request.cache_salt,
            request.owner,
            request.priority,
            run.time_left,
            request.session,
        )
        output = await self._models.run(StepCall(step, call), model, joined)
        run.num_tokens += output.num_tokens
        if output.redactions:
            entries = iter(output.redactions)
            run.keep([[one for _ in range(num_entries(value)) for one in next(entries)] for value in given], indexes)
        return cut(output.value, given)


def _chosen(step: GraphStepConfig, decider: GraphValue) -> str:
    scores = ranked(decider.labels[0])
    label = scores[0].label if scores else "none"  # a threshold may have left none
    model = step.cases.get(label, step.default) if scores else step.default
    if model is None:
        raise UnprocessableError(f"step {step.name}: no case is for label {label[:100]!r}, and there is no default")
    return model


def _run_chain(chain: Chain, value: GraphValue) -> _Made:
    """A value after a chain, and what it has taken out."""
    given = ChainValue(texts=value.texts) if value.is_list else ChainValue(text=value.texts[0])
    outcome = chain.run(given, has_trace=False)
    result = outcome.value
    texts = [result.text] if result.text is not None else result.texts
    if texts is None:
        raise InternalError("a chain of a graph gave token ids")
    return _Made(GraphValue("text", is_list=result.text is None, texts=texts), outcome.redactions)


def _restored(values: Values, redactions: Sequence[list[Redaction]]) -> Values:
    """Texts with what has been taken out of their input in its place again."""
    return [
        replace(value, texts=list(map(Originals(known).restore, value.texts))) if value.kind == "text" else value
        for value, known in zip(values, redactions, strict=True)
    ]


def _first(failures: BaseExceptionGroup) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
