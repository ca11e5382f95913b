"""The paths below `/api/`, as Ollama's clients call them."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.gateway.bodies.convert import parse_body
from serve_app.gateway.bodies.ollama import (
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddings,
    OllamaGenerateBody,
    OllamaModels,
    OllamaProcesses,
    OllamaShowBody,
    OllamaTextBody,
)
from serve_app.gateway.bodies.others import Version
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import GenerationCall
from serve_app.gateway.calls.ollama import OllamaCalls
from serve_app.gateway.calls.open_inference import server_version
from serve_app.gateway.http.generated import AnswerRunner
from serve_app.gateway.http.ollama_answers import LINES, OllamaEvents, OllamaTimes, loaded_answer, ollama_answer
from serve_app.gateway.http.shell import RequestShell, json_answer, json_bytes


def ollama_routes(plane: DataPlane, shell: RequestShell) -> list[Route]:
    """The paths that are served."""
    endpoints = _OllamaEndpoints(plane, shell)
    return [
        Route("/api/chat", endpoints.chat, methods=["POST"]),
        Route("/api/generate", endpoints.generate, methods=["POST"]),
        Route("/api/embed", endpoints.embed, methods=["POST"]),
        Route("/api/tags", endpoints.tags),
        Route("/api/ps", endpoints.processes),
        Route("/api/show", endpoints.show, methods=["POST"]),
        Route("/api/version", endpoints.version),
    ]


class _OllamaEndpoints:
    def __init__(self, plane: DataPlane, shell: RequestShell) -> None:
        self._shell = shell
        self._calls = OllamaCalls(plane)
        self._runner = AnswerRunner(plane, shell)

    async def chat(self, request: Request) -> Response:
        """A conversation; without messages whether the model is there."""
        body = parse_body(await self._shell.read(request), OllamaChatBody)
        if not body.messages:
            return self._loaded(body, is_chat=True)
        return await self._answer(request, await self._calls.chat(body), is_chat=True)

    async def generate(self, request: Request) -> Response:
        """A prompt; without one whether the model is there."""
        body = parse_body(await self._shell.read(request), OllamaGenerateBody)
        call = await self._calls.generate(body) if body.prompt else None
        return self._loaded(body, is_chat=False) if call is None else await self._answer(request, call, is_chat=False)

    async def embed(self, request: Request) -> Response:
        """Vectors of texts."""
        body, times = parse_body(await self._shell.read(request), OllamaEmbedBody), OllamaTimes()
        name, rows, num_tokens = await self._shell.run(request, self._calls.embed(body))
        return json_answer(OllamaEmbeddings(name, rows, times.since_arrival_ns(), 0, num_tokens))

    async def tags(self, _request: Request) -> Response:
        """All models."""
        return json_answer(OllamaModels(self._calls.models()))

    async def processes(self, _request: Request) -> Response:
        """Models that can answer."""
        return json_answer(OllamaProcesses(self._calls.running()))

    async def show(self, request: Request) -> Response:
        """One model."""
        return json_answer(self._calls.show(parse_body(await self._shell.read(request), OllamaShowBody)))

    async def version(self, _request: Request) -> Response:
        """Of this software, not of Ollama."""
        return json_answer(Version(server_version()))

    async def _answer(self, request: Request, call: GenerationCall, *, is_chat: bool) -> Response:
        (run,) = call.runs()
        times = OllamaTimes()
        if call.options.is_stream:
            return self._runner.stream(request, call, run, OllamaEvents(call, run, times, is_chat=is_chat), LINES)
        answer = await self._runner.whole(request, call, run, times.see)
        return json_bytes(ollama_answer(answer, call, run, times, is_chat=is_chat))

    def _loaded(self, body: OllamaTextBody, *, is_chat: bool) -> Response:
        content = loaded_answer(self._calls.loaded(body), is_chat=is_chat)
        is_streamed = body.stream is not False
        return Response(content, media_type=LINES.media_type if is_streamed else "application/json")
