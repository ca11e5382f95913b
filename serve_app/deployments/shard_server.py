"""Forks shards on CPU from a process that has imported torch and transformers: 5 s of CPU and 200 MB, once."""

import importlib
import sys
from functools import partial
from pathlib import Path

from serve_app.deployments.fork_server import serve
from serve_app.deployments.forkable_ray import import_forkable

WITH_RAY = ("ray._private.workers.default_worker", "serve_app.deployments.shard")


def main(path: Path, engines: list[str]) -> None:
    """Serve processes that run one of these engines."""

    def import_engines() -> None:
        shard = importlib.import_module("serve_app.engine.shard")
        for engine in engines:
            shard.import_engine(engine)

    serve(path, import_engines, partial(import_forkable, WITH_RAY))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
