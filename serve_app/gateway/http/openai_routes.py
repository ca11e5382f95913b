"""HTTP endpoints of OpenAI's API, and of what stands beside it: models, tokens."""

import time
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body, parse_body
from serve_app.gateway.bodies.openai import ChatBatchBody, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from serve_app.gateway.bodies.others import DetokenizedText, TokenizedText
from serve_app.gateway.calls.chat_batch import conversations
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import GenerationCall, PromptRun, run_call
from serve_app.gateway.calls.params import check_token_ids
from serve_app.gateway.calls.thinking_budget import within_budget
from serve_app.gateway.http.middleware import new_id
from serve_app.gateway.http.openai_responses import ModelList, WholeAnswer, model_card, model_state
from serve_app.gateway.http.openai_stream import ChatEvents, CompletionEvents
from serve_app.gateway.http.shell import RequestShell, json_answer, json_bytes
from serve_app.gateway.http.sse import EventStreamResponse, Outbox
from serve_app.gateway.time_limits import within


class OpenAIEndpoints:
    """One method for each route."""

    def __init__(self, plane: DataPlane) -> None:
        self._backend = plane.backend
        self._config = plane.config
        self._shell = RequestShell(plane.config)
        self._pool = plane.pool
        self._models = plane.models
        self._reader = plane.reader
        self._prompts = plane.prompts

    async def list_models(self, _request: Request) -> Response:
        """All models."""
        return json_answer(ModelList([model_card(description) for description in self._models.all()]))

    async def get_model(self, request: Request) -> Response:
        """One model."""
        description = self._models.describe(request.path_params["name"])
        report = self._backend.health()
        copies = report.models.get(description.name, [])
        is_ready = description.name in report.asleep or any(copy.state == "ready" for copy in copies)
        return json_answer(model_state(description, is_ready=is_ready))

    async def complete(self, request: Request) -> Response:
        """Text completion."""
        return await self.answer_completion(request, await self._shell.read_object(request))

    async def chat(self, request: Request) -> Response:
        """Chat completion."""
        return await self.answer_chat(request, await self._shell.read_object(request))

    async def answer_completion(self, request: Request, given: dict[str, Any]) -> Response:
        """The answer to a body that is parsed already."""
        body = convert_body(given, CompletionBody)
        call = await self._reader.completion(body, await self._models.find(body.model))
        return await self._answer(request, call, is_chat=False)

    async def answer_chat(self, request: Request, given: dict[str, Any]) -> Response:
        """The answer to a body that is parsed already."""
        body = convert_body(given, ChatBody)
        call = await self._reader.chat(body, await self._models.find(body.model), has_parts=True)
        return await self._answer(request, call, is_chat=True)

    async def chat_batch(self, request: Request) -> Response:
        """Chat completions of several conversations, in one answer."""
        body = convert_body(await self._shell.read_object(request), ChatBatchBody)
        model = await self._models.find(body.model)
        calls = [await self._reader.chat(one, model, has_parts=True) for one in conversations(body)]
        joined = replace(
            calls[0],
            requests=[one for call in calls for one in call.requests],
            prompt_texts=[texts for call in calls for texts in call.prompt_texts],
        )
        runs = [run for call in calls for run in call.runs()]
        answer = WholeAnswer(joined, runs, new_id("chatcmpl-"), int(time.time()))
        await self._shell.run(request, run_call(joined, runs, self._backend, answer.add))
        return json_bytes(answer.chat())

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a conversation."""
        body = parse_body(await self._shell.read(request), TokenizeBody)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("send either prompt or messages", field="prompt")
        if body.tools and body.messages is None:
            raise RequestError("tools is for messages; leave it out beside prompt", field="tools")
        model = await self._models.find_text_model(body.model)
        is_chat = body.prompt is None
        text = await self._prompts.chat_text(body, model) if body.prompt is None else body.prompt
        is_special_added = bool(body.add_special_tokens) if is_chat else body.add_special_tokens is not False
        token_ids = await self._prompts.encode(text, model.tokenizer, is_special_added=is_special_added)
        token_strs = [model.tokenizer.token_string(token_id) for token_id in token_ids]
        has_strings = bool(body.return_token_strs)
        return json_answer(
            TokenizedText(len(token_ids), model.max_context_tokens, token_ids, token_strs if has_strings else None)
        )

    async def detokenize(self, request: Request) -> Response:
        """Text of token ids, special tokens shown."""
        body = parse_body(await self._shell.read(request), DetokenizeBody)
        model = await self._models.find_text_model(body.model)
        check_token_ids(body.tokens, model, "tokens")
        text = await self._pool.run(model.tokenizer.decode, body.tokens, skip_special_tokens=False)
        return json_answer(DetokenizedText(text))

    async def _answer(self, request: Request, call: GenerationCall, *, is_chat: bool) -> Response:
        runs = call.runs()
        response_id, created_s = new_id("chatcmpl-" if is_chat else "cmpl-"), int(time.time())
        if call.options.is_stream:
            events_type = ChatEvents if is_chat else CompletionEvents
            limit_s = self._shell.time_limit(request)  # refused before anything is sent
            return self._stream(limit_s, call, runs, events_type(call, runs, response_id, created_s))
        answer = WholeAnswer(call, runs, response_id, created_s)
        work = run_call(call, runs, within_budget(self._backend, call), answer.add)
        await self._shell.run(request, work)
        return json_bytes(answer.chat() if is_chat else answer.completion())

    def _stream(
        self, limit_s: float | None, call: GenerationCall, runs: list[PromptRun], events: CompletionEvents | ChatEvents
    ) -> EventStreamResponse:
        async def produce(outbox: Outbox) -> None:
            def emit(prompt_index: int, delta: ChoiceDelta) -> None:
                outbox.put(events.encode(prompt_index, delta), len(delta.token_ids))

            await within(limit_s, run_call(call, runs, within_budget(self._backend, call), emit))
            outbox.put(events.end(), 0)

        return EventStreamResponse(produce, max_waiting_tokens=self._config.client_buffer_tokens)
