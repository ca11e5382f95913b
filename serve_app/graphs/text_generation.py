"""Text generation for a deployment that wants whole answers: a Router's tokens collected from the token link."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import get_node_ip_address

from serve_app.errors import InternalError, RequestAbortedError
from serve_app.types.generation import Completion, FinishReason, GenerateRequest, OutputChunk
from serve_app.types.links import LinkAddress
from serve_app.wire.links import TokenReceiver
from serve_app.wire.messages import TokenBatch, unpack_batch

_LAST_CHUNKS_S = 5.0  # how long the last tokens may come after the call has returned


@dataclass(slots=True, eq=False)
class Collected:
    """The tokens of one request with one choice."""

    token_ids: list[int] = field(default_factory=list)
    stop_token_id: int | None = None
    finish_reason: FinishReason | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def feed(self, chunk: OutputChunk) -> None:
        """Take a chunk in; what comes after a gap is left out, so that the count is wrong in the end."""
        if chunk.first_index == len(self.token_ids):
            self.token_ids += chunk.token_ids
        if chunk.finish_reason is not None:
            self.finish_reason, self.stop_token_id = chunk.finish_reason, chunk.stop_token_id
            self.ended.set()

    def answer(self, completion: Completion) -> list[int]:
        """All tokens but the one that ended them. Raises a RayshardError."""
        if self.finish_reason == "abort":
            raise RequestAbortedError("the request was aborted")
        if self.finish_reason == "error":
            raise InternalError("the model failed on this request; see the server's log")
        if completion.num_output_tokens != [len(self.token_ids)]:
            raise InternalError(f"tokens were lost: {completion.num_output_tokens} were drawn")
        return self.token_ids[:-1] if self.stop_token_id is not None else self.token_ids


class TextGeneration:
    """This process's end of the token link."""

    def __init__(self) -> None:
        self._receiver = TokenReceiver(str(get_node_ip_address()))
        if len(ray.nodes()) > 1:
            self._receiver.listen_wide()
        self._numbers = itertools.count()
        self._open: dict[int, Collected] = {}
        self._receiving = asyncio.create_task(self._receive())

    @property
    def is_alive(self) -> bool:
        """Whether tokens are still received."""
        return not self._receiving.done()

    async def generate(self, router: Any, request: GenerateRequest) -> list[int]:
        """The tokens of a request's one choice; `router` is a handle. Cancelling aborts the sequence."""
        number = next(self._numbers)
        collected = self._open[number] = Collected()
        try:
            completion = await self._call(router, request, number)
            async with asyncio.timeout(_LAST_CHUNKS_S):
                await collected.ended.wait()
        except TimeoutError as error:
            raise InternalError("the last tokens were lost") from error
        finally:
            del self._open[number]
        return collected.answer(completion)

    async def _call(self, router: Any, request: GenerateRequest, number: int) -> Completion:
        address: LinkAddress = self._receiver.address
        response = router.generate.remote(request, address, number)
        try:
            completion: Completion = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return completion

    async def _receive(self) -> None:
        while True:
            message = await self._receiver.receive()
            if not isinstance(message, TokenBatch):
                continue
            for number, chunk in unpack_batch(message):
                collected = self._open.get(number)
                if collected is not None:
                    collected.feed(chunk)
