"""The Python client: one small interface over HTTP and gRPC, asynchronous and not. Loads neither torch nor Ray.

    with Client("http://127.0.0.1:8000") as client:          # or grpc://127.0.0.1:9000
        for piece in client.generate("add 12 34 =", max_tokens=8):
            print(piece.text, end="")

Calls raise the errors of serve_app.errors. What is refused because the server is busy or away is tried again, after a
delay that grows and varies, or as long as the server says; a stream only before its first piece.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve_app.client.calls import Arrays, CallOptions, Carrier, Classification, Piece
from serve_app.client.grpc import GrpcCarrier
from serve_app.client.http import HttpCarrier
from serve_app.errors import RayshardError, RequestError, TimeoutExceededError

_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 10.0
ResultT = TypeVar("ResultT")


class AsyncClient:
    """Calls as coroutines and asynchronous iterators; to be made and used on one event loop.

    address: http://, https:// or grpc://host:port. timeout_s: of a call with all its tries; None: no limit.
    """

    def __init__(
        self, address: str, *, api_key: str | None = None, timeout_s: float | None = None, max_retries: int = 4
    ) -> None:
        self._carrier = _carrier_of(address)
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._max_retries = max_retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections."""
        await self._carrier.close()

    def generate(
        self, prompt: str | Sequence[int], *, model: str | None = None, **sampling: object
    ) -> AsyncIterator[Piece]:
        """A text's continuation as it is made; sampling as in `/v1/completions`. model None: the only one."""
        return self._stream(lambda options: self._carrier.generate(model, prompt, sampling, options))

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, model: str | None = None, **sampling: object
    ) -> AsyncIterator[Piece]:
        """A conversation's answer as it is made; messages are {"role", "content"}."""
        return self._stream(lambda options: self._carrier.chat(model, messages, sampling, options))

    async def embed(self, texts: Sequence[str], *, model: str | None = None, **settings: object) -> NDArray[np.float32]:
        """Vectors [N, D] float32 of texts; settings: dimensions, truncate; over HTTP prompt_name, input_type."""
        return await self._call(lambda options: self._carrier.embed(model, texts, settings, options))

    async def classify(
        self, texts: Sequence[str], *, model: str | None = None, **settings: object
    ) -> list[Classification]:
        """The labels of each text; settings: top_k, threshold, truncate; over HTTP text_pair."""
        return await self._call(lambda options: self._carrier.classify(model, texts, settings, options))

    async def predict(self, inputs: Arrays, *, model: str) -> dict[str, NDArray[np.generic]]:
        """What a module makes of named arrays; bfloat16 outputs come as float32."""
        return await self._call(lambda options: self._carrier.predict(model, inputs, options))

    async def _call(self, work: Callable[[CallOptions], Awaitable[ResultT]]) -> ResultT:
        tries = _Tries(self._timeout_s, self._max_retries)
        while True:
            try:
                return await work(CallOptions(tries.left_s(), self._api_key))
            except RayshardError as error:
                await tries.wait_or_raise(error)

    async def _stream(self, start: Callable[[CallOptions], AsyncIterator[Piece]]) -> AsyncIterator[Piece]:
        tries = _Tries(self._timeout_s, self._max_retries)
        has_begun = False
        while True:
            pieces = start(CallOptions(tries.left_s(), self._api_key))
            try:
                async for piece in pieces:
                    has_begun = True
                    yield piece
                return
            except RayshardError as error:
                if has_begun:
                    raise
                await tries.wait_or_raise(error)
            finally:
                await pieces.aclose()  # type: ignore[attr-defined]  # it is a generator


class Client:
    """Calls that wait: an AsyncClient on an event loop of its own, in a thread. May be used from any thread."""

    def __init__(
        self, address: str, *, api_key: str | None = None, timeout_s: float | None = None, max_retries: int = 4
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rayshard-client", daemon=True)
        self._thread.start()

        async def make() -> AsyncClient:
            return AsyncClient(address, api_key=api_key, timeout_s=timeout_s, max_retries=max_retries)

        try:
            self._client = self._run(make())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and end the thread."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._stop()

    def generate(self, prompt: str | Sequence[int], *, model: str | None = None, **sampling: object) -> Iterator[Piece]:
        """As AsyncClient's."""
        return self._iterate(self._client.generate(prompt, model=model, **sampling))

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, model: str | None = None, **sampling: object
    ) -> Iterator[Piece]:
        """As AsyncClient's."""
        return self._iterate(self._client.chat(messages, model=model, **sampling))

    def embed(self, texts: Sequence[str], *, model: str | None = None, **settings: object) -> NDArray[np.float32]:
        """As AsyncClient's."""
        return self._run(self._client.embed(texts, model=model, **settings))

    def classify(self, texts: Sequence[str], *, model: str | None = None, **settings: object) -> list[Classification]:
        """As AsyncClient's."""
        return self._run(self._client.classify(texts, model=model, **settings))

    def predict(self, inputs: Arrays, *, model: str) -> dict[str, NDArray[np.generic]]:
        """As AsyncClient's."""
        return self._run(self._client.predict(inputs, model=model))

    def _iterate(self, pieces: AsyncIterator[Piece]) -> Iterator[Piece]:
        async def next_piece() -> Piece | None:
            return await anext(pieces, None)

        try:
            while (piece := self._run(next_piece())) is not None:
                yield piece
        finally:
            self._run(pieces.aclose())  # type: ignore[attr-defined]  # it is a generator

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        future: Future[ResultT] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Tries:
    """The tries of one call."""

    def __init__(self, timeout_s: float | None, max_retries: int) -> None:
        self._deadline_s = None if timeout_s is None else _now_s() + timeout_s
        self._num_left = max_retries
        self._delay_s = _FIRST_DELAY_S

    def left_s(self) -> float | None:
        """Seconds until the call's end. Raises TimeoutExceededError."""
        if self._deadline_s is None:
            return None
        left_s = self._deadline_s - _now_s()
        if left_s <= 0:
            raise TimeoutExceededError("the call's timeout_s has passed")
        return left_s

    async def wait_or_raise(self, error: RayshardError) -> None:
        """Wait before the next try; raises the error when there is none."""
        delay_s = error.retry_after_s or self._delay_s * random.uniform(0.5, 1.5)
        is_too_late = self._deadline_s is not None and _now_s() + delay_s > self._deadline_s
        if not error.is_retryable or self._num_left <= 0 or is_too_late:
            raise error
        self._num_left -= 1
        self._delay_s = min(2 * self._delay_s, _MAX_DELAY_S)
        await asyncio.sleep(delay_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _carrier_of(address: str) -> Carrier:
    scheme, found, rest = address.partition("://")
    if scheme in ("http", "https"):
        return HttpCarrier(address)
    if scheme == "grpc" and found and rest:
        return GrpcCarrier(rest)
    raise RequestError(f"address={address[:80]!r} cannot be called; write http://host:port or grpc://host:port")
