"""Shards in plain processes, without Ray: for tests, benchmarks and machines that have only torch."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from serve_app.engine.shard import EngineShard
from serve_app.errors import ShardLostError, UnavailableError
from serve_app.types.shards import (
    BatchShardSettings,
    EngineLimits,
    Rendezvous,
    ShardReport,
    ShardSettings,
    ShardSpec,
)
from serve_app.wire.links import ControlAddress

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
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
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
        self, settings: list[ShardSettings | BatchShardSettings], rendezvous_s: float, collective_s: float
    ) -> list[ShardReport]:
        """As `load`, with the settings of every shard."""
        pipes = self.pipes[: len(settings)]
        for pipe, one in zip(pipes, settings, strict=True):
            self._send(pipe, "create", one, HOST)
        self._results(pipes, "create")
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
    """A model copy's shards of one epoch, as plain processes; has what a ModelCopy asks of a group."""

    host = HOST

    def __init__(
        self,
        settings: list[ShardSettings | BatchShardSettings],
        rendezvous_s: float = 60.0,
        collective_s: float = 60.0,
        make_processes: Callable[[int], PlainProcesses] = PlainProcesses,
    ) -> None:
        self.reports: list[ShardReport] = []
        self.processes: list[BaseProcess] = []
        self._settings = settings
        self._waits_s = (rendezvous_s, collective_s)
        self._make_processes = make_processes
        self._pool: PlainProcesses | None = None

    async def start(self) -> None:
        """Start the processes and load the model. Raises UnavailableError."""
        self.reports = await asyncio.to_thread(self._start)

    async def allocate(self, limits: EngineLimits) -> None:
        """Make the KV caches of all shards."""
        assert self._pool is not None
        await asyncio.to_thread(self._pool.allocate, len(self._settings), limits)

    async def run(self, address: ControlAddress) -> None:
        """Let all shards run; returns when all have been stopped, raises ShardLostError as soon as one is lost."""
        assert self._pool is not None
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[Connection] = asyncio.Queue()
        pipes = self._pool.pipes
        self._pool.run(len(pipes), address)
        for pipe in pipes:
            loop.add_reader(pipe.fileno(), _note_end, loop, pipe, ended)
        try:
            for _ in pipes:
                _raise_failure(await ended.get())
        finally:
            for pipe in pipes:
                if not pipe.closed:
                    loop.remove_reader(pipe.fileno())

    def kill(self) -> None:
        """End all shards at once."""
        if self._pool is not None:
            for process in self._pool.processes:
                process.kill()

    def _start(self) -> list[ShardReport]:
        self._pool = self._make_processes(len(self._settings))
        self.processes = self._pool.processes
        return self._pool.load_each(self._settings, *self._waits_s)


def _note_end(loop: asyncio.AbstractEventLoop, pipe: Connection, ended: "asyncio.Queue[Connection]") -> None:
    """A shard has told how its run ended, or its process is gone and its pipe with it."""
    loop.remove_reader(pipe.fileno())
    ended.put_nowait(pipe)


def _raise_failure(pipe: Connection) -> None:
    """Raises ShardLostError unless the run of the pipe's shard was stopped in good order."""
    try:
        error, _result = pipe.recv()
    except (EOFError, OSError) as lost:
        raise ShardLostError("a shard's process has ended") from lost
    if error is not None:
        raise ShardLostError(f"a shard failed: {error}")


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
