"""One step of a graph: texts or tensors in, a model's answer to each out."""

import asyncio
import secrets
from dataclasses import dataclass, field

from serve_app.backend.prompts import default_prompt
from serve_app.backend.text_models import Call, TextEntry, TextModels, fits, input_of, output_rows
from serve_app.config.graph import GraphStepConfig
from serve_app.errors import InternalError, RequestError, UnavailableError, UnprocessableError
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.model_entries import check_token_ids, text_item
from serve_app.preprocessing.packing import check_packing
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.chains import ChainValue, Redaction
from serve_app.types.generation import GenerateRequest, OutputChunk, SamplingParams
from serve_app.types.graphs import GraphValue
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item

_MAX_CALLS = 8  # texts that one step generates at once
_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step, and the request that it runs for."""

    step: GraphStepConfig
    call: Call


@dataclass(frozen=True, slots=True)
class StepAnswers:
    """A model's answers, and how many tokens it has read."""

    value: GraphValue  # one entry for each that went in
    num_tokens: int
    redactions: list[list[Redaction]] = field(default_factory=list)  # of each entry; empty: of none


class ModelSteps:
    """Runs entries on models, tokenizing what they take as text."""

    def __init__(self, models: TextModels, pool: TextPool, renderer: ChatTemplateRenderer | None = None) -> None:
        self._models = models
        self._pool = pool
        self._renderer = renderer  # None: no step is a chat

    async def run(self, call: StepCall, name: str, given: GraphValue) -> StepAnswers:
        """The answers of a model to all entries of a value. Raises a RayshardError."""
        model = self._models.backend.model(name)
        if model is None:
            raise UnavailableError(f"model={name}, which the graph calls, is not served now", retry_after_s=5.0)
        if model.task == "generate":
            return await self._generate_all(call, model, given)
        num_tokens = 0
        before = _Prepared([])
        if given.kind == "text":
            before = await self._prepare(call, model, given)
            entries = [TextEntry(one, "text", prompt=default_prompt(model)) for one in before.inputs]
            encodings = await self._models.encode(model, await self._models.tokenizer(model), entries)
            for encoding in encodings:
                _check_length(call, model, len(encoding.token_ids), model.max_model_len)
            num_tokens = sum(len(encoding.token_ids) for encoding in encodings)
            items = [text_item(encoding, model) for encoding in encodings]
        else:
            items = [_tensor_item(call, model, item) for item in given.items]
        outputs = await self._models.run_items(call.call, model, items) if items else []
        return StepAnswers(await self._value_of(call, model, outputs), num_tokens, before.redactions)

    async def _prepare(self, call: StepCall, model: ModelDescription, given: GraphValue) -> "_Prepared":
        """What the steps before the model make of each text. One that becomes a message gets its template later."""
        if not model.has_preprocessing or not given.texts:
            return _Prepared(list(given.texts))
        is_message = model.task == "generate" and call.step.is_chat
        values = [ChainValue(texts=[text]) if is_message else ChainValue(text=text) for text in given.texts]
        made = await self._models.run_steps(call.call, model, values)
        return _Prepared([input_of(one.value) for one in made], [one.redactions for one in made])

    async def _value_of(self, call: StepCall, model: ModelDescription, outputs: list[Item]) -> GraphValue:
        if model.postprocessing_gives is None and model.task == "predict":
            return GraphValue("tensors", items=outputs)
        if model.task == "embed":
            if outputs:
                output_rows(model, outputs)  # all are finite
            name = next(iter(model.outputs))
            return GraphValue("embedding", items=[{"embedding": output[name]} for output in outputs])
        answers = await self._models.answers(call.call, model, outputs)
        if model.postprocessing_gives == "json":
            return GraphValue("json", texts=answers.json)
        is_multi_label = model.postprocessing_gives is None and model.is_multi_label
        return GraphValue("label", labels=answers.labels, is_multi_label=is_multi_label)

    async def _generate_all(self, call: StepCall, model: ModelDescription, given: GraphValue) -> StepAnswers:
        before = await self._prepare(call, model, given)
        texts = [text for text in before.inputs if isinstance(text, str)]
        tokenizer = await self._models.tokenizer(model)
        limit = asyncio.Semaphore(_MAX_CALLS)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._generate(call, model, tokenizer, text, limit)) for text in texts]
        answers = [task.result() for task in tasks]
        value = GraphValue("text", texts=[answer.text for answer in answers])
        return StepAnswers(value, sum(answer.num_prompt_tokens for answer in answers), before.redactions)

    async def _generate(
        self, call: StepCall, model: ModelDescription, tokenizer: Tokenizer, text: str, limit: asyncio.Semaphore
    ) -> "_Generated":
        async with limit:
            if call.step.is_chat:
                text = await self._render(call, tokenizer, text)
            is_special_added = not (call.step.is_chat or model.is_prompt_templated)
            prompt = await self._pool.run(tokenizer.encode, text, add_special_tokens=is_special_added)
            check_token_ids(prompt, model, tokenizer, "text")
            max_tokens = min(model.max_model_len, model.max_request_tokens)
            _check_length(call, model, len(prompt), max_tokens - 1)
            params = SamplingParams(
                max_tokens=min(call.step.max_tokens, max_tokens - len(prompt)),
                seed=secrets.randbits(_SEED_BITS),
                temperature=call.step.temperature,
            )
            request = GenerateRequest(
                call.call.request_id,
                prompt,
                params,
                queue_timeout_s=call.call.queue_timeout_s,
                cache_salt=call.call.cache_salt,
                owner=call.call.owner,
                priority=call.call.priority,
                time_left_s=call.call.time_left.seconds,
                session=call.call.session,
            )
            token_ids = await self._token_ids(model, request)
            return _Generated(await self._pool.run(tokenizer.decode_after, prompt, token_ids), len(prompt))

    async def _token_ids(self, model: ModelDescription, request: GenerateRequest) -> list[int]:
        """The tokens of a request's one choice, without the one that ended it."""
        token_ids: list[int] = []

        def take(chunk: OutputChunk) -> bool:
            is_stop_shown = chunk.stop_token_id is None
            token_ids.extend(chunk.token_ids if is_stop_shown else chunk.token_ids[:-1])
            return True

        await self._models.backend.generate(model.name, request, take)
        return token_ids

    async def _render(self, call: StepCall, tokenizer: Tokenizer, text: str) -> str:
        if tokenizer.chat_template is None or self._renderer is None:
            raise InternalError(f"step {call.step.name}: is_chat=true, but the model has no chat template; remove it")
        messages = [{"role": "user", "content": text}]
        return await self._renderer.render(tokenizer.chat_template, messages, variables=dict(tokenizer.special_tokens))


@dataclass(frozen=True, slots=True)
class _Generated:
    text: str
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The inputs of a model, after its own preprocessing."""

    inputs: list[str | list[int]]
    redactions: list[list[Redaction]] = field(default_factory=list)  # of each; empty: of none


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
        if tensor is None or tensor.dtype != spec.dtype or not fits(tensor.shape, spec.shape):
            told = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            wanted = f"{name} as {spec.dtype} {list(spec.shape)}"
            raise UnprocessableError(f"step {call.step.name}: model {model.name} takes {wanted}, and gets {told}")
    item = {name: named[name] for name in model.inputs}
    check_packing(item, model)
    return item
