"""Reads the outputs of launched steps beside the loop that launches them."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from serve_app.engine.step_runner import PendingOutput
from serve_app.types.steps import StepOutput


class OutputReader:
    """A thread that waits for outputs, one after the other, and hands each on.

    failure: what has ended it before it was asked to.
    """

    def __init__(self, send: Callable[[StepOutput], None]) -> None:
        self.failure: Exception | None = None
        self._send = send
        self._pending: SimpleQueue[PendingOutput | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def put(self, pending: PendingOutput) -> None:
        """Have an output read and handed on, behind those put before."""
        self._pending.put(pending)

    def finish(self) -> None:
        """Return when all that was put has been handed on, or nothing more will be."""
        self._pending.put(None)
        self._thread.join()

    def _read(self) -> None:
        try:
            while (pending := self._pending.get()) is not None:
                self._send(pending.output())
        except Exception as error:  # the device is lost: the loop raises it
            self.failure = error
