"""`POST /v1/responses`: OpenAI's Responses API over the calls of a chat. No answer is kept."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import run_call
from serve_app.gateway.calls.responses import as_chat, in_own_words, read_responses_body
from serve_app.gateway.http.responses_answer import GrowingResponse
from serve_app.gateway.http.responses_stream import ResponseEvents
from serve_app.gateway.http.shell import RequestShell, json_answer
from serve_app.gateway.http.sse import EventStreamResponse, Outbox, StreamStyle
from serve_app.gateway.time_limits import within


def responses_routes(plane: DataPlane, shell: RequestShell) -> list[Route]:
    """The one path that there is without a store."""

    async def create(request: Request) -> Response:
        body = read_responses_body(await shell.read_object(request))
        chat = as_chat(body)
        model = await plane.models.find(body.model)
        with in_own_words(body):
            call = await plane.reader.chat(chat, model, has_parts=True)
        runs = call.runs()
        response = GrowingResponse(body, call, runs[0])
        if not call.options.is_stream:
            await shell.run(request, run_call(call, runs, plane.backend, response.add))
            return json_answer(response.ended())
        limit_s = shell.time_limit(request)  # refused before anything is sent
        events = ResponseEvents(response)

        async def produce(outbox: Outbox) -> None:
            def emit(_prompt_index: int, delta: ChoiceDelta) -> None:
                outbox.put(events.encode(delta), len(delta.token_ids))

            await within(limit_s, run_call(call, runs, plane.backend, emit))
            outbox.put(events.end(), 0)

        max_waiting = plane.config.client_buffer_tokens
        return EventStreamResponse(produce, max_waiting_tokens=max_waiting, style=StreamStyle(events.failure))

    return [Route("/v1/responses", create, methods=["POST"])]
