"""What the server of Ray's workers imports, and that processes forked from it are each their own."""

import subprocess
import sys

import pytest

LINES = (
    "import os, sys",
    "from serve_app.deployments import fork_server, shard_server, worker_server",
    "from serve_app.deployments.forkable_ray import import_forkable",
    "from serve_app.deployments.light_serve import import_without_pandas",
    "import_without_pandas(worker_server.WITHOUT_RAY)",
    "assert not {'ray', 'torch', 'transformers'} & set(sys.modules)",
    "import_forkable([*shard_server.WITH_RAY, *worker_server.WITH_RAY])",
    "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)",
    "import numpy.random, random, ray, uuid",
    "reader, writer = os.pipe()",
    "for _ in range(2):",
    "    if os.fork() == 0:",
    "        fork_server.draw_own_numbers()",
    "        ray.remote(type('Actor', (), {}))",
    "        drawn = [ray.ObjectID.from_random().hex(), ray.WorkerID.from_random().hex(), uuid.uuid4().hex]",
    "        os.write(writer, ' '.join([*drawn, str(random.random()), str(numpy.random.random())]).encode() + b'\\n')",
    "        os._exit(0)",
    "    os.wait()",
    "one, other = os.read(reader, 4096).decode().splitlines()",
    "assert not set(one.split()) & set(other.split()), (one, other)",
)


@pytest.mark.process
def test_forked_workers_draw_numbers_of_their_own() -> None:
    command = [sys.executable, "-c", "\n".join(LINES)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
