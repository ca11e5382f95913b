"""The end of `rayshard serve`: after the requests that run, or at once."""

import signal
import time
from types import FrameType

from serve_app.cli.serve_events import Drained, Draining, read_event
from serve_app.cli.serve_process import SHUTDOWN_S, ServeProcess
from serve_app.cli.serve_texts import drained_text, draining_text

_POLL_S = 0.25
_SHUTDOWN_UNREADY_S = 2.0  # nothing is served yet that could be drained
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Counts the signals that ask us to stop, while it is entered."""

    def __init__(self) -> None:
        self.num_received = 0
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> "StopSignals":
        for number in _SIGNALS:
            signal.signal(number, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self.num_received += 1


def stop_process(process: ServeProcess, stop: StopSignals, drain_s: float | None) -> None:
    """End the child and all it started: gently first, at once when told a second time.

    drain_s: how long running requests may go on; None: nothing is served yet.
    """
    if stop.num_received:
        print("Draining ..." if drain_s else "Stopping ...", flush=True)
    if drain_s != 0:
        num_before = stop.num_received
        process.interrupt()
        _wait(process, stop, drain_s, num_before)
    process.end()


def _wait(process: ServeProcess, stop: StopSignals, drain_s: float | None, num_before: int) -> None:
    """Tell what it waits for, until it has ended, its time is over, or a signal comes after `num_before`."""
    shutdown_s = _SHUTDOWN_UNREADY_S if drain_s is None else drain_s + SHUTDOWN_S
    deadline_s = time.monotonic() + shutdown_s
    while True:
        has_ended = process.exit_status is not None
        is_over = has_ended or stop.num_received > num_before or time.monotonic() >= deadline_s
        for line in process.new_lines():
            match read_event(line):
                case Draining(num_requests):
                    print(draining_text(num_requests), flush=True)
                case Drained(num_left):
                    print(drained_text(num_left, drain_s or 0.0), flush=True)
        if is_over:
            return
        time.sleep(_POLL_S)
