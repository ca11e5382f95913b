"""What routes of other chat APIs share: they run a request and collect its answer, or stream it in their form."""

from collections.abc import Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import GenerationCall, PromptRun, run_call
from serve_app.gateway.calls.thinking_budget import within_budget
from serve_app.gateway.http.openai_responses import GrowingAnswer
from serve_app.gateway.http.shell import RequestShell
from serve_app.gateway.http.sse import EventStreamResponse, Outbox, StreamStyle
from serve_app.gateway.time_limits import within


class AnswerEvents(Protocol):
    """Writes the one answer of a request, piece by piece."""

    def encode(self, delta: ChoiceDelta) -> bytes:
        """What the answer grew by."""
        ...

    def end(self) -> bytes:
        """What follows the last piece."""
        ...


class AnswerRunner:
    """Runs requests that have one prompt and one choice."""

    def __init__(self, plane: DataPlane, shell: RequestShell) -> None:
        self._backend = plane.backend
        self._shell = shell
        self._max_waiting_tokens = plane.config.client_buffer_tokens

    async def whole(
        self, request: Request, call: GenerationCall, run: PromptRun, see: Callable[[], None] = lambda: None
    ) -> GrowingAnswer:
        """The whole answer; `see` is called as each piece comes."""
        answer = GrowingAnswer()

        def emit(_prompt_index: int, delta: ChoiceDelta) -> None:
            see()
            answer.add(delta)

        await self._shell.run(request, run_call(call, [run], within_budget(self._backend, call), emit))
        return answer

    def stream(
        self, request: Request, call: GenerationCall, run: PromptRun, events: AnswerEvents, style: StreamStyle
    ) -> Response:
        """The answer as its events come."""
        limit_s = self._shell.time_limit(request)  # refused before anything is sent

        async def produce(outbox: Outbox) -> None:
            def emit(_prompt_index: int, delta: ChoiceDelta) -> None:
                piece = events.encode(delta)
                if piece:  # there may be nothing to show of it yet
                    outbox.put(piece, len(delta.token_ids))

            await within(limit_s, run_call(call, [run], within_budget(self._backend, call), emit))
            outbox.put(events.end(), 0)

        return EventStreamResponse(produce, max_waiting_tokens=self._max_waiting_tokens, style=style)
