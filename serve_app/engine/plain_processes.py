"""A shard group in plain processes, without Ray: for tests, benchmarks and machines that have only torch."""

import multiprocessing
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from serve_app.engine.batch_shard import BatchEngineShard
from serve_app.engine.shard import EngineShard
from serve_app.errors import UnavailableError
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


class PlainProcesses:
    """Processes that each hold one shard at a time; starting them (imports) costs more than a small model."""

    def __init__(self, num_processes: int, timeout_s: float = 120.0) -> None:
        self._timeout_s = timeout_s
        self._pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        context = multiprocessing.get_context("spawn")
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def load(
        self,
        settings: ShardSettings | BatchShardSettings,
        shards: list[ShardSpec],
        rendezvous_s: float = 60.0,
        collective_s: float = 60.0,
    ) -> list[ShardReport]:
        """Make a group of the first processes; raises UnavailableError, and ends all, when one dies or fails."""
        pipes = self._pipes[: len(shards)]
        for pipe, shard in zip(pipes, shards, strict=True):
            self._send(pipe, "create", _settings_of(settings, shard), HOST)
        self._results(pipes, "create")
        rendezvous = None
        if len(shards) > 1:
            port = self._call(pipes[:1], "open_store", rendezvous_s)[0]
            rendezvous = Rendezvous(HOST, port, rendezvous_s, collective_s)
        return self._call(pipes, "load", rendezvous)

    def allocate(self, num_shards: int, limits: EngineLimits) -> None:
        """Make the group's KV caches."""
        self._call(self._pipes[:num_shards], "allocate", limits)

    def run(self, num_shards: int, address: ControlAddress) -> None:
        """Let the group run; `wait` for its end."""
        for pipe in self._pipes[:num_shards]:
            self._send(pipe, "run", address)

    def wait(self, num_shards: int) -> None:
        """Wait until the group's run has been stopped; raises UnavailableError when a shard failed."""
        self._results(self._pipes[:num_shards], "run")

    def kill(self) -> None:
        """End all processes at once."""
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self._pipes, strict=True):
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


def _settings_of(settings: ShardSettings | BatchShardSettings, shard: ShardSpec) -> ShardSettings | BatchShardSettings:
    if isinstance(settings, ShardSettings):
        return replace(settings, shard=shard)
    return replace(settings, shard=shard, models=[replace(model, shard=shard) for model in settings.models])


def _serve(pipe: Connection) -> None:
    """A process: run the calls that come through the pipe."""
    shard: EngineShard | BatchEngineShard | None = None
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        result = None
        try:
            if method == "create":
                make = BatchEngineShard if isinstance(args[0], BatchShardSettings) else EngineShard
                shard = make(*args)
            else:
                result = getattr(shard, method)(*args)
        except Exception as error:
            pipe.send((f"{type(error).__name__}: {error}", None))
        else:
            pipe.send((None, result))
