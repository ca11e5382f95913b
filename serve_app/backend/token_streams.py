"""Requests on their way: each stream's chunks as they come in over the token link."""

import asyncio
from collections.abc import Callable
from typing import Self

from serve_app.errors import InternalError, RayshardError
from serve_app.types.generation import Completion, OutputChunk

_LAST_CHUNKS_S = 5.0  # how long the last tokens may come after the call has returned


class TokenStream:
    """Tokens of one request; fed by the link and by the end of its unary call."""

    def __init__(self, num_choices: int, cancel: Callable[[], None], *, last_chunks_s: float = _LAST_CHUNKS_S) -> None:
        self._num_unfinished = num_choices
        self._next_indexes = [0] * num_choices
        self._cancel = cancel
        self._last_chunks_s = last_chunks_s
        self._pending: list[OutputChunk] = []
        self._arrived = asyncio.Event()
        self._error: RayshardError | None = None
        self._is_closed = False
        self._has_begun = False
        self._expiry: asyncio.TimerHandle | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[OutputChunk]:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._num_unfinished == 0:
                self._close()
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        chunks, self._pending = self._pending, []
        return chunks

    async def aclose(self) -> None:
        """Abort the request unless it has ended."""
        if self._num_unfinished and self._error is None and not self._is_closed:
            self._cancel()
        self._close()

    @property
    def has_begun(self) -> bool:
        """Whether anything has arrived."""
        return self._has_begun

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._is_closed or self._error is not None or self._num_unfinished == 0

    def abandon(self, error: RayshardError) -> None:
        """Cancel the request and end the stream with an error."""
        self._cancel()
        self.fail(error)

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that have arrived and were not read."""
        return sum(len(chunk.token_ids) for chunk in self._pending)

    def feed(self, chunk: OutputChunk) -> None:
        """Take a chunk in; a gap in a choice's tokens ends the stream with an error."""
        if self._error is not None or self._is_closed:
            return
        if chunk.first_index != self._next_indexes[chunk.choice]:
            self.abandon(InternalError(f"tokens were lost before token {chunk.first_index} of choice {chunk.choice}"))
            return
        self._next_indexes[chunk.choice] += len(chunk.token_ids)
        self._num_unfinished -= chunk.finish_reason is not None
        self._pending.append(chunk)
        self._has_begun = True
        self._arrived.set()

    def fail(self, error: RayshardError) -> None:
        """End the stream with an error, after what has arrived."""
        if self._error is None and self._num_unfinished:
            self._error = error
            self._arrived.set()

    def complete(self, completion: Completion) -> None:
        """The call has returned: the last chunks must be here soon, or were lost."""
        if self._num_unfinished:
            lost = InternalError(f"the last tokens were lost: {sum(completion.num_output_tokens)} were drawn")
            self._expiry = asyncio.get_running_loop().call_later(self._last_chunks_s, self.fail, lost)

    def _close(self) -> None:
        self._is_closed = True
        if self._expiry is not None:
            self._expiry.cancel()
