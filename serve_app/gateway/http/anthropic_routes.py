"""HTTP endpoints of Anthropic's Messages API."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.errors import RayshardError
from serve_app.gateway.bodies.anthropic_served import count_tokens_body, messages_body
from serve_app.gateway.calls.anthropic import MessagesCall, MessagesCalls
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import PromptRun
from serve_app.gateway.failures import told_message
from serve_app.gateway.http.anthropic_answers import PING, MessageEvents, TokenCount, WholeMessage, named_event
from serve_app.gateway.http.anthropic_errors import (
    MESSAGES_PATH,
    messages_error,
    request_id_headers,
    request_id_of,
)
from serve_app.gateway.http.middleware import new_id
from serve_app.gateway.http.shell import RequestShell, json_answer
from serve_app.gateway.http.sse import EventStreamResponse, Outbox, StreamStyle
from serve_app.gateway.time_limits import within


def anthropic_routes(plane: DataPlane, shell: RequestShell) -> list[Route]:
    """The paths of the Messages API."""
    endpoints = _MessagesEndpoints(plane, shell)
    return [
        Route(MESSAGES_PATH, endpoints.answer, methods=["POST"]),
        Route(f"{MESSAGES_PATH}/count_tokens", endpoints.count_tokens, methods=["POST"]),
    ]


class _MessagesEndpoints:
    def __init__(self, plane: DataPlane, shell: RequestShell) -> None:
        self._calls = MessagesCalls(plane)
        self._shell = shell
        self._max_waiting_tokens = plane.config.client_buffer_tokens

    async def answer(self, request: Request) -> Response:
        """Answer a conversation."""
        body = messages_body(await self._shell.read_object(request))
        call = await self._calls.generation(body)
        (run,) = call.generation.runs()
        message_id = new_id("msg_")
        if call.generation.options.is_stream:
            return self._stream(request, call, run, MessageEvents(call, run, message_id))
        answer = WholeMessage(call, run, message_id)
        await self._shell.run(request, self._calls.run(call, run, answer.add))
        return _named(json_answer(answer.answer()), request)

    async def count_tokens(self, request: Request) -> Response:
        """How many tokens a conversation has in the model's template."""
        body = count_tokens_body(await self._shell.read_object(request))
        count = await self._shell.run(request, self._calls.count_tokens(body))
        return _named(json_answer(TokenCount(count)), request)

    def _stream(self, request: Request, call: MessagesCall, run: PromptRun, events: MessageEvents) -> Response:
        limit_s = self._shell.time_limit(request)  # refused before anything is sent

        async def produce(outbox: Outbox) -> None:
            def emit(_prompt_index: int, delta: ChoiceDelta) -> None:
                content = events.encode(delta)
                if content:  # reasoning that is not shown gives none
                    outbox.put(content, len(delta.token_ids))

            await within(limit_s, self._calls.run(call, run, emit))

        def show_error(error: RayshardError) -> bytes:
            content = messages_error(told_message(error), error.http_status, request_id_of(request.scope))
            return named_event("error", content)

        style = StreamStyle(show_error, PING, headers=request_id_headers(request.scope))
        return EventStreamResponse(produce, max_waiting_tokens=self._max_waiting_tokens, style=style)


def _named(response: Response, request: Request) -> Response:
    response.headers.update(request_id_headers(request.scope))
    return response
