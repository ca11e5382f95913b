"""One step of a graph: texts or tensors in, a model's answer to each out."""

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.config.graph import GraphStepConfig
from serve_app.errors import InternalError, RequestError, UnprocessableError
from serve_app.preprocessing.arrays import to_array
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.model_entries import label_probabilities, text_item
from serve_app.preprocessing.packing import check_packing
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import TextEncoding, Tokenizer
from serve_app.types.chains import ChainRequest, ChainResult, ChainValue, Redaction
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.graphs import GraphValue
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult, Item

_ITEMS_PER_CALL = 32  # what one copy is given at a time
_TEXTS_PER_JOB = 256  # tokenized by one thread at a time
_MAX_CALLS = 8  # of one step at once
_SEED_BITS = 63


class ModelCaller(Protocol):
    """The models that a graph reaches."""

    def describe(self, model: str) -> ModelDescription:
        """What a model takes and gives. Raises UnavailableError naming it when it is not served."""
        ...

    async def infer(self, request: InferRequest) -> InferResult:
        """Run entries on a model. Raises a RayshardError."""
        ...

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """Run values through the steps before or behind a model. Raises a RayshardError."""
        ...

    async def generate(self, model: str, request: GenerateRequest) -> list[int]:
        """The token ids of a request's one choice. Raises a RayshardError."""
        ...


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step, and the request that it runs for."""

    step: GraphStepConfig
    request_id: str
    queue_timeout_s: float | None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A model's answers, and how many tokens it has read."""

    value: GraphValue  # one entry for each that went in
    num_tokens: int
    redactions: list[list[Redaction]] = field(default_factory=list)  # of each entry; empty: of none


class ModelSteps:
    """Runs entries on models, tokenizing what they take as text."""

    def __init__(self, caller: ModelCaller, pool: TextPool, renderer: ChatTemplateRenderer | None = None) -> None:
        self._caller = caller
        self._pool = pool
        self._renderer = renderer  # None: no step is a chat
        self._tokenizers: dict[str, tuple[tuple[str, int], Tokenizer]] = {}  # by model: of which files

    async def run(self, call: StepCall, name: str, given: GraphValue) -> StepOutput:
        """The answers of a model to all entries of a value. Raises a RayshardError."""
        model = self._caller.describe(name)
        if model.task == "generate":
            return await self._generate_all(call, model, given)
        before = await self._prepare(call, model, given) if given.kind == "text" else _Prepared([])
        if given.kind == "text":
            encodings = await self._encode(call, model, before.inputs)
            items = [text_item(encoding, model) for encoding in encodings]
        else:
            encodings = []
            items = [_tensor_item(call, model, item) for item in given.items]
        outputs = await self._infer(call, model, items)
        num_tokens = sum(len(encoding.token_ids) for encoding in encodings)
        return StepOutput(await self._answers(call, model, outputs), num_tokens, before.redactions)

    async def _infer(self, call: StepCall, model: ModelDescription, items: list[Item]) -> list[Item]:
        limit = asyncio.Semaphore(_MAX_CALLS)

        async def run(start: int) -> list[Item]:
            piece = items[start : start + _ITEMS_PER_CALL]
            async with limit:
                request = InferRequest(call.request_id, model.name, piece, call.queue_timeout_s)
                return (await self._caller.infer(request)).outputs

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(start)) for start in range(0, len(items), _ITEMS_PER_CALL)]
        return [output for task in tasks for output in task.result()]

    async def _prepare(self, call: StepCall, model: ModelDescription, given: GraphValue) -> "_Prepared":
        """What the steps before the model make of each text. One that becomes a message gets its template later."""
        if not model.has_preprocessing or not given.texts:
            return _Prepared(list(given.texts))
        is_message = model.task == "generate" and call.step.is_chat
        values = [ChainValue(texts=[text]) if is_message else ChainValue(text=text) for text in given.texts]
        made = (await self._caller.run_chain(ChainRequest(call.request_id, model.name, values))).values
        return _Prepared([_before_model(one.value) for one in made], [one.redactions for one in made])

    async def _answers(self, call: StepCall, model: ModelDescription, outputs: list[Item]) -> GraphValue:
        if model.postprocessing_gives is None or not outputs:
            return _value_of(model, outputs)
        if model.task == "predict":
            values = [ChainValue(tensors=output) for output in outputs]
        else:
            values = [ChainValue(numbers=row.tolist()) for row in _rows(model, outputs)]
        request = ChainRequest(call.request_id, model.name, values, is_after=True)
        made = [one.value for one in (await self._caller.run_chain(request)).values]
        if model.postprocessing_gives == "json":
            return GraphValue("json", texts=[value.json for value in made if value.json is not None])
        return GraphValue("label", labels=[value.labels for value in made if value.labels is not None])

    async def _encode(
        self, call: StepCall, model: ModelDescription, given: list[str | list[int]]
    ) -> list[TextEncoding]:
        tokenizer = await self._tokenizer(model)
        jobs = [
            self._pool.run(_encode_some, tokenizer, given[start : start + _TEXTS_PER_JOB])
            for start in range(0, len(given), _TEXTS_PER_JOB)
        ]
        encodings = [encoding for job in await asyncio.gather(*jobs) for encoding in job]
        for encoding in encodings:
            _check_length(call, model, len(encoding.token_ids), model.max_model_len)
        return encodings

    async def _generate_all(self, call: StepCall, model: ModelDescription, given: GraphValue) -> StepOutput:
        before = await self._prepare(call, model, given)
        texts = [text for text in before.inputs if isinstance(text, str)]
        tokenizer = await self._tokenizer(model)
        limit = asyncio.Semaphore(_MAX_CALLS)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._generate(call, model, tokenizer, text, limit)) for text in texts]
        answers = [task.result() for task in tasks]
        value = GraphValue("text", texts=[answer.text for answer in answers])
        return StepOutput(value, sum(answer.num_prompt_tokens for answer in answers), before.redactions)

    async def _generate(
        self, call: StepCall, model: ModelDescription, tokenizer: Tokenizer, text: str, limit: asyncio.Semaphore
    ) -> "_Answer":
        async with limit:
            if call.step.is_chat:
                text = await self._render(call, tokenizer, text)
            is_special_added = not (call.step.is_chat or model.is_prompt_templated)
            prompt = await self._pool.run(tokenizer.encode, text, add_special_tokens=is_special_added)
            max_tokens = min(model.max_model_len, model.max_request_tokens)
            _check_length(call, model, len(prompt), max_tokens - 1)
            params = SamplingParams(
                max_tokens=min(call.step.max_tokens, max_tokens - len(prompt)),
                seed=secrets.randbits(_SEED_BITS),
                temperature=call.step.temperature,
            )
            request = GenerateRequest(call.request_id, prompt, params, queue_timeout_s=call.queue_timeout_s)
            token_ids = await self._caller.generate(model.name, request)
            return _Answer(await self._pool.run(tokenizer.decode, token_ids), len(prompt))

    async def _render(self, call: StepCall, tokenizer: Tokenizer, text: str) -> str:
        if tokenizer.chat_template is None or self._renderer is None:
            raise InternalError(f"step {call.step.name}: is_chat=true, but the model has no chat template; remove it")
        messages = [{"role": "user", "content": text}]
        return await self._renderer.render(tokenizer.chat_template, messages, variables=dict(tokenizer.special_tokens))

    async def _tokenizer(self, model: ModelDescription) -> Tokenizer:
        files = (model.source_dir, model.created_s)
        known = self._tokenizers.get(model.name)
        if known is None or known[0] != files:
            known = self._tokenizers[model.name] = (files, await self._pool.run(Tokenizer.load, model.source_dir))
        return known[1]


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The inputs of a model behind its own preprocessing."""

    inputs: list[str | list[int]]
    redactions: list[list[Redaction]] = field(default_factory=list)  # of each; empty: of none


def _before_model(value: ChainValue) -> str | list[int]:
    given = value.texts[0] if value.texts is not None else value.text
    if value.token_ids is not None:
        return value.token_ids
    assert given is not None, "check_chains refuses other ends"
    return given


def _encode_some(tokenizer: Tokenizer, texts: list[str | list[int]]) -> list[TextEncoding]:
    return [
        TextEncoding(text, [0] * len(text)) if isinstance(text, list) else tokenizer.encode_entry(text)
        for text in texts
    ]


def _check_length(call: StepCall, model: ModelDescription, num_tokens: int, max_tokens: int) -> None:
    where = f"step {call.step.name}: a text has {num_tokens} tokens"
    if num_tokens == 0:
        raise RequestError(f"{where}; send some text", field="text")
    if num_tokens > max_tokens:
        raise RequestError(f"{where}, and model {model.name} takes {max_tokens}; send a shorter one", field="text")


def _tensor_item(call: StepCall, model: ModelDescription, given: Item) -> Item:
    """An entry's tensors under the names of the model's inputs."""
    named = given
    if len(given) == 1 and len(model.inputs) == 1:
        named = dict(zip(model.inputs, given.values(), strict=True))
    for name, spec in model.inputs.items():
        tensor = named.get(name)
        if tensor is None or tensor.dtype != spec.dtype or not _fits(tensor.shape, spec.shape):
            told = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            wanted = f"{name} as {spec.dtype} {list(spec.shape)}"
            raise UnprocessableError(f"step {call.step.name}: model {model.name} takes {wanted}, and gets {told}")
    item = {name: named[name] for name in model.inputs}
    check_packing(item, model)
    return item


def _fits(shape: tuple[int, ...], declared: tuple[int | str, ...]) -> bool:
    if len(shape) != len(declared):
        return False
    return all(isinstance(dim, str) or dim == size for size, dim in zip(shape, declared, strict=True))


def _value_of(model: ModelDescription, outputs: list[Item]) -> GraphValue:
    if model.task == "predict":
        return GraphValue("tensors", items=outputs)
    rows = _rows(model, outputs)
    if model.task == "embed":
        name = next(iter(model.outputs))
        return GraphValue("embedding", items=[{"embedding": output[name]} for output in outputs])
    labels = label_probabilities(model, np.stack(rows)) if rows else []
    return GraphValue("label", labels=labels, is_multi_label=model.is_multi_label)


def _rows(model: ModelDescription, outputs: list[Item]) -> list[NDArray[np.float32]]:
    """The model's one output for each entry [C]. Raises InternalError."""
    name = next(iter(model.outputs))
    rows = [to_array(output[name]).reshape(-1).astype(np.float32, copy=False) for output in outputs]
    if not all(np.isfinite(row).all() for row in rows):
        raise InternalError(f"model={model.name} gave an output that is not finite")
    return rows
