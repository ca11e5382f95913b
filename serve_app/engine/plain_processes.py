"""Shards in plain processes, without Ray: for tests, benchmarks and machines that have only torch."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Container
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from serve_app.engine.shard import EngineShard
from serve_app.errors import PeerLostError, ShardLostError, UnavailableError
from serve_app.types.shards import (
    LEAVE_S,
    BatchShardSettings,
    EngineLimits,
    Rendezvous,
    ShardReport,
    ShardSettings,
    ShardSpec,
    StartTimes,
)
from serve_app.wire.control_link import ControlAddress

HOST = "127.0.0.1"
_PRELOADED = [  # by the process that is forked
    "serve_app.engine.shard",
    "serve_app.engine.batch_engine",
    "serve_app.engine.generation_engine",
    "serve_app.engine.encoder_loader",
    "transformers.models.auto.modeling_auto",
]


class PlainProcesses:
    """Processes that each hold one shard at a time, forked from one that has imported the engine."""

    def __init__(self, num_processes: int, timeout_s: float = 120.0) -> None:
        self._timeout_s = timeout_s
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for _ in range(num_processes):
            pipe, process = _start_process()
            self.pipes.append(pipe)
            self.processes.append(process)

    def load(
        self,
        settings: ShardSettings | BatchShardSettings,
        shards: list[ShardSpec],
        rendezvous_s: float = 60.0,
        collective_s: float = 60.0,
    ) -> list[ShardReport]:
        """Make a group of the first processes; raises UnavailableError, and ends all, when one dies or fails."""
        return self.load_each([_settings_of(settings, shard) for shard in shards], rendezvous_s, collective_s)

    def load_each(
        self,
        settings: list[ShardSettings | BatchShardSettings],
        rendezvous_s: float,
        collective_s: float,
        kept: Container[int] = (),
    ) -> list[ShardReport]:
        """As `load`, with the settings of every shard; those of `kept` have been made and loaded already."""
        pipes = self.pipes[: len(settings)]
        new = [index for index in range(len(settings)) if index not in kept]
        for index in new:
            self._send(pipes[index], "create", settings[index], HOST)
        self._results([pipes[index] for index in new], "create")
        rendezvous = None
        if len(settings) > 1:
            port = self._call(pipes[:1], "open_store", rendezvous_s)[0]
            rendezvous = Rendezvous(HOST, port, rendezvous_s, collective_s)
        return self._call(pipes, "load", rendezvous)

    def allocate(self, num_shards: int, limits: EngineLimits) -> None:
        """Make the group's KV caches."""
        self._call(self.pipes[:num_shards], "allocate", limits)

    def run(self, num_shards: int, address: ControlAddress) -> None:
        """Let the group run; `wait` for its end."""
        for pipe in self.pipes[:num_shards]:
            self._send(pipe, "run", address)

    def wait(self, num_shards: int) -> None:
        """Wait until the group's run has been stopped; raises UnavailableError when a shard failed."""
        self._results(self.pipes[:num_shards], "run")

    def replace(self, index: int) -> None:
        """End one process and start another in its place."""
        self.processes[index].kill()
        self.processes[index].join()
        self.pipes[index].close()
        self.pipes[index], self.processes[index] = _start_process()

    def leave(self, index: int) -> None:
        """Let a shard leave its group; raises UnavailableError when it is lost, and ends no other."""
        pipe = self.pipes[index]
        try:
            pipe.send(("leave", ()))
            error, _result = pipe.recv()
        except (EOFError, OSError) as lost:
            raise UnavailableError("a shard died during leave") from lost
        if error is not None:
            raise UnavailableError(f"a shard failed during leave: {error}")

    def kill(self) -> None:
        """End all processes at once."""
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join()
            pipe.close()

    def _call(self, pipes: list[Connection], method: str, *args: Any) -> list[Any]:
        for pipe in pipes:
            self._send(pipe, method, *args)
        return self._results(pipes, method)

    def _send(self, pipe: Connection, method: str, *args: Any) -> None:
        try:
            pipe.send((method, args))
        except OSError as lost:
            self.kill()
            raise UnavailableError(f"a shard died during {method}") from lost

    def _results(self, pipes: list[Connection], method: str) -> list[Any]:
        results: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout_s
        while len(results) < len(pipes):
            for index, pipe in enumerate(pipes):
                if index not in results and pipe.poll(0.01):
                    results[index] = self._receive(pipe, method)
            if time.monotonic() > deadline:
                self.kill()
                raise UnavailableError(f"{method} did not end within {self._timeout_s} s")
        return [results[index] for index in range(len(pipes))]

    def _receive(self, pipe: Connection, method: str) -> Any:
        try:
            error, result = pipe.recv()
        except (EOFError, OSError) as lost:  # a connection reset when it died with a call unread
            self.kill()
            raise UnavailableError(f"a shard died during {method}") from lost
        if error is not None:
            self.kill()
            raise UnavailableError(f"a shard failed during {method}: {error}")
        return result


class ProcessShardGroup:
    """A model copy's shards as plain processes; has what a ModelCopy asks of a group."""

    host = HOST

    def __init__(
        self,
        settings: list[ShardSettings | BatchShardSettings],
        rendezvous_s: float = 60.0,
        collective_s: float = 60.0,
        make_processes: Callable[[int], PlainProcesses] = PlainProcesses,
    ) -> None:
        self.reports: list[ShardReport] = []
        self.times = StartTimes()
        self._settings = settings
        self._waits_s = (rendezvous_s, collective_s)
        self._make_processes = make_processes
        self._pool: PlainProcesses | None = None
        self._kept: set[int] = set()
        self._runs: list[asyncio.Future[None]] = []  # by shard

    @property
    def processes(self) -> list[BaseProcess]:
        """By shard; none before `start`."""
        return [] if self._pool is None else list(self._pool.processes)

    async def start(self) -> None:
        """Start the processes that are missing and load the model. Raises UnavailableError."""
        self.reports = await asyncio.to_thread(self._start)

    async def allocate(self, limits: EngineLimits) -> None:
        """Make the KV caches of all shards."""
        assert self._pool is not None
        await asyncio.to_thread(self._pool.allocate, len(self._settings), limits)

    async def run(self, address: ControlAddress) -> None:
        """Let all shards run; returns when all have been stopped, raises ShardLostError as soon as one is lost."""
        assert self._pool is not None
        loop = asyncio.get_running_loop()
        self._pool.run(len(self._settings), address)
        self._runs = [loop.create_future() for _ in self._settings]
        for pipe, run in zip(self._pool.pipes, self._runs, strict=True):
            loop.add_reader(pipe.fileno(), _note_end, loop, pipe, run)
        done, _running = await asyncio.wait(self._runs, return_when=asyncio.FIRST_EXCEPTION)
        for run in done:
            run.result()

    async def renew(self, suspects: frozenset[int]) -> bool:
        """See ShardGroup."""
        pool = self._pool
        assert pool is not None
        for index in suspects:
            pool.processes[index].kill()
        leaving = [asyncio.ensure_future(self._leave(index, pool)) for index in range(len(self._runs))]
        _done, late = await asyncio.wait(leaving, timeout=LEAVE_S)
        for index, left in enumerate(leaving):
            if left in late or left.exception() is not None:
                pool.processes[index].kill()
        if late:  # a thread that waits for an answer hears that the process has ended
            await asyncio.wait(late)
        self._kept = {index for index, left in enumerate(leaving) if left not in late and left.exception() is None}
        if not self._kept:
            return False
        for index in set(range(len(leaving))) - self._kept:
            await asyncio.to_thread(pool.replace, index)
        return True

    def stand_by(self) -> None:
        """None waits: a process is forked at once."""

    def kill(self) -> None:
        """End all shards at once."""
        for process in self.processes:
            process.kill()

    def _start(self) -> list[ShardReport]:
        began_s = time.monotonic()
        if self._pool is None:
            self._pool = self._make_processes(len(self._settings))
        processes_s = time.monotonic() - began_s
        reports = self._pool.load_each(self._settings, *self._waits_s, self._kept)
        self.times = StartTimes.of(len(self._kept), processes_s, reports)
        return reports

    async def _leave(self, index: int, pool: PlainProcesses) -> None:
        with contextlib.suppress(PeerLostError):
            await self._runs[index]
        await asyncio.to_thread(pool.leave, index)


def _start_process() -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _note_end(loop: asyncio.AbstractEventLoop, pipe: Connection, run: "asyncio.Future[None]") -> None:
    """A shard has told how its run ended, or its process is gone and its pipe with it."""
    loop.remove_reader(pipe.fileno())
    if run.done():
        return
    try:
        error, _result = pipe.recv()
    except (EOFError, OSError):
        run.set_exception(ShardLostError("a shard's process has ended"))
    else:
        if error is None:
            run.set_result(None)
        elif error.startswith(PeerLostError.__name__):
            run.set_exception(PeerLostError(error))
        else:
            run.set_exception(ShardLostError(f"a shard failed: {error}"))
    run.exception()  # when a shard is lost others fail as well, and nobody asks for the end of each


def _settings_of(settings: ShardSettings | BatchShardSettings, shard: ShardSpec) -> ShardSettings | BatchShardSettings:
    if isinstance(settings, ShardSettings):
        return replace(settings, shard=shard)
    return replace(settings, shard=shard, models=[replace(model, shard=shard) for model in settings.models])


def _serve(pipe: Connection) -> None:
    """A process: run the calls that come through the pipe."""
    shard: EngineShard | None = None
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        result = None
        try:
            if method == "create":
                shard = EngineShard(*args)
            else:
                result = getattr(shard, method)(*args)
        except Exception as error:
            pipe.send((f"{type(error).__name__}: {error}", None))
        else:
            pipe.send((None, result))
