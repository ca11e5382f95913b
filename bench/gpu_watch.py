"""Watches over the process that uses the device: where it dies, hangs or loses its device, another runs what is left.

No torch: this process outlives what a fault does to the device.
"""

import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from bench.gpu_messages import Begun, Ended, Found, Message, Started
from bench.gpu_part import PART_LIMITS_S
from bench.gpu_report import Report

_START_S = 90.0  # to import torch and reach the device


class WorkerGoneError(Exception):
    """The process has ended."""


class Worker(Protocol):
    """A process that runs parts."""

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None: there was none in time. Raises WorkerGoneError."""
        ...

    def stop(self) -> None:
        """End it, whatever it does."""
        ...


StartWorker = Callable[[Sequence[str]], Worker]


def watch(
    names: Sequence[str],
    start: StartWorker,
    report: Report,
    max_s: float,
    now_s: Callable[[], float] = time.monotonic,
) -> None:
    """Have all parts run within `max_s`; those that there is no time for have failed."""
    end_s = now_s() + max_s
    rest = list(names)
    while rest and now_s() < end_s:
        worker = start(rest)
        try:
            is_reached = _follow(worker, rest, report, end_s, now_s)
        finally:
            worker.stop()
        if not is_reached:
            _fail(rest, report, "the process that was to run it did not reach the device: see its error")
    _fail(rest, report, "not run: no time was left")


def _follow(worker: Worker, rest: list[str], report: Report, end_s: float, now_s: Callable[[], float]) -> bool:
    """Report what a worker finds until it is gone; takes the parts that are over out of `rest`.

    Gives whether it has reached the device.
    """
    is_begun = is_started = False
    begin_s = now_s()
    limit_s = min(begin_s + _START_S, end_s)
    while rest:
        part = rest[0]
        try:
            message = worker.receive(limit_s - now_s())
        except WorkerGoneError as error:
            if is_started:  # else it has ended between parts, as its device is of no use any more
                report.end(rest.pop(0), Ended(now_s() - begin_s, f"its process died: {error}"))
            return is_begun
        match message:
            case None:
                elapsed_s = now_s() - begin_s
                report.end(rest.pop(0), Ended(elapsed_s, f"not done after {elapsed_s:.0f} s, and ended"))
                return is_begun
            case Begun():
                is_begun = True
                report.begin(message)
            case Started():
                is_started = True
                begin_s = now_s()
                limit_s = min(begin_s + PART_LIMITS_S[part], end_s)
                report.start(message)
            case Found():
                report.find(part, message)
            case Ended():
                is_started = False
                report.end(rest.pop(0), message)
    return is_begun


def _fail(rest: list[str], report: Report, why: str) -> None:
    while rest:
        report.end(rest.pop(0), Ended(0.0, why))


class ProcessWorker:
    """Worker in a process of its own."""

    def __init__(self, names: Sequence[str], device_name: str, *, is_tiny: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(theirs, list(names), device_name, is_tiny))
        self._process.start()
        theirs.close()

    def receive(self, timeout_s: float) -> Message | None:
        """See Worker."""
        try:
            if not self._connection.poll(max(0.0, timeout_s)):
                return None
            message: Message = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerGoneError(f"exit status {self._process.exitcode}") from None
        return message

    def stop(self) -> None:
        """See Worker."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _work(connection: Connection, names: Sequence[str], device_name: str, is_tiny: bool) -> None:
    """Imports torch only where it is used."""
    importlib.import_module("bench.gpu_worker").work(connection.send, names, device_name, is_tiny=is_tiny)
