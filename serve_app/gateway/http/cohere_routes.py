"""`POST /v2/chat`, as Cohere's clients call it."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.gateway.bodies.cohere import CohereChatBody
from serve_app.gateway.bodies.convert import parse_body
from serve_app.gateway.calls.cohere_chat import cohere_call
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.cohere_answers import CohereEvents, cohere_answer
from serve_app.gateway.http.generated import AnswerRunner
from serve_app.gateway.http.middleware import new_id
from serve_app.gateway.http.shell import RequestShell, json_bytes
from serve_app.gateway.http.sse import StreamStyle


def cohere_routes(plane: DataPlane, shell: RequestShell) -> list[Route]:
    """The paths that are not the Open Inference Protocol's."""
    runner = AnswerRunner(plane, shell)

    async def chat(request: Request) -> Response:
        body = parse_body(await shell.read(request), CohereChatBody)
        call = await cohere_call(body, plane.models, plane.reader)
        (run,) = call.runs()
        response_id = new_id()
        if call.options.is_stream:
            events = CohereEvents(call, run, response_id)
            return runner.stream(request, call, run, events, StreamStyle(events.error))
        answer = await runner.whole(request, call, run)
        return json_bytes(cohere_answer(answer, call, run, response_id))

    return [Route("/v2/chat", chat, methods=["POST"])]
