"""Forks Ray's workers that hold no shard: Serve's controller and proxies, Gateways, Routers, builders."""

import sys
from functools import partial
from pathlib import Path

from serve_app.deployments.fork_server import serve
from serve_app.deployments.forkable_ray import import_forkable
from serve_app.deployments.light_serve import import_without_pandas

WITHOUT_RAY = (
    "serve_app.deployments.model_replica",
    "serve_app.gateway.http.app",
)
WITH_RAY = (
    "ray._private.workers.default_worker",
    "ray.serve._private.controller",
    "ray.serve._private.proxy",
    "ray.serve._private.replica",
    "serve_app.app",
)


def main(path: Path) -> None:
    """Serve processes that run any of it."""
    serve(path, partial(import_without_pandas, WITHOUT_RAY), partial(import_forkable, WITH_RAY))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
