"""The servers that fork the workers of `rayshard serve`, for its child: they end when it does, or lets them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Self

from serve_app.config.environment import Environment
from serve_app.deployments.fork_server import variables_line
from serve_app.types.shards import EngineKind


class ForkServers:
    """One for shards on CPU, if there are any, and one for all other workers; no others than on Linux."""

    def __init__(self, environment: Environment, engines: Sequence[EngineKind], *, has_workers: bool) -> None:
        """engines: that shards on CPU run; has_workers: whether the other workers ask for a server."""
        commands: list[list[str]] = []
        if sys.platform == "linux":  # elsewhere libraries do not survive a fork
            if engines and environment.shard_server is not None:
                commands.append(["serve_app.deployments.shard_server", environment.shard_server, *engines])
            if has_workers and environment.worker_server is not None:
                commands.append(["serve_app.deployments.worker_server", environment.worker_server])
        self._stack = ExitStack()
        self._servers = [
            self._stack.enter_context(subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.PIPE))
            for command in commands
        ]

    def tell_variables(self, variables: Mapping[str, str] | None) -> None:
        """What Ray's workers have in their environment; None: they are to import Ray themselves."""
        for server in self._servers:
            assert server.stdin is not None
            with suppress(BrokenPipeError):  # it has ended, and workers do without
                server.stdin.write(variables_line(variables))
                server.stdin.flush()

    def close(self) -> None:
        """Let them end; what they have forked goes on."""
        for server in self._servers:
            assert server.stdin is not None
            with suppress(BrokenPipeError):  # what it was told and has never read
                server.stdin.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:  # nobody waits for what they would still import
            for server in self._servers:
                server.terminate()
        self.close()
