"""Compiles grammars beside a shard's steps, and tells the Router of each that is done."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Protocol

from serve_app.types.steps import GrammarChange

_LOOK_S = 0.1  # a run that ends waits for that long


class GrammarCompiler(Protocol):
    """What the desk asks of the grammars beside the sampler; by the thread that runs the steps."""

    def prepare(self, text: str) -> Future[Any]:
        """Have a grammar compiled in another thread, in turn, and keep it."""
        ...

    def forget(self, text: str) -> None:
        """Keep it no more."""
        ...


class GrammarDesk:
    """Takes the Router's grammars between two steps; a thread of its own waits for them."""

    def __init__(self, compiler: GrammarCompiler, send: Callable[[int], None]) -> None:
        """send: called in that thread with the number of each grammar that is compiled, or cannot be."""
        self._compiler = compiler
        self._send = send
        self._texts: dict[int, str] = {}
        self._pending: SimpleQueue[tuple[int, Future[Any]] | None] = SimpleQueue()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def take(self, change: GrammarChange) -> None:
        """Begin with a grammar, or drop it."""
        if change.text is None:
            self._compiler.forget(self._texts.pop(change.number))
            return
        self._texts[change.number] = change.text
        self._pending.put((change.number, self._compiler.prepare(change.text)))

    def close(self) -> None:
        """Tell of nothing more."""
        self._is_over.set()
        self._pending.put(None)
        self._thread.join()

    def _tell(self) -> None:
        while (pending := self._pending.get()) is not None:
            number, compiled = pending
            while not wait([compiled], _LOOK_S).done:
                if self._is_over.is_set():
                    return
            if self._is_over.is_set():
                return
            self._send(number)
