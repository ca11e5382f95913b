"""Batches on a real cluster: two Gateways share a directory, one of them is killed while it works."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types import Batch

from tests.integration.serve_cluster import GATEWAY, ServeCluster, model_application

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_LINES = 400
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ServeCluster]:
    gateway = {
        **GATEWAY,
        "args": {"queue_timeout_s": 120.0, "batches": {"directory": "batches"}},
        "deployments": [{"name": "Gateway", "num_replicas": 2}],
    }
    cluster = ServeCluster([gateway, model_application("demo")])
    yield cluster
    cluster.stop()


@pytest.fixture
def client(cluster: ServeCluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=10) as client:
        yield client


def begun(client: openai.OpenAI, num_lines: int) -> Batch:
    body = {"model": "demo", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/completions", "body": {**body, "prompt": f"hello {n}"}}
        for n in range(num_lines)
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")


def num_completed(client: openai.OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    return 0 if counts is None else counts.completed


def holders_of(path: Path) -> list[int]:
    """Processes that hold the kernel's lock on a file; the other Gateway opens it now and then, too."""
    inode = path.stat().st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].endswith(f":{inode}")]


def test_a_batch_outlasts_the_gateway_that_works_it(cluster: ServeCluster, client: openai.OpenAI) -> None:
    cluster.wait_until(lambda: has_both_gateways(cluster), 240, "both Gateways")
    batch = begun(client, NUM_LINES)
    cluster.wait_until(lambda: num_completed(client, batch) >= 20, 120, "the first answers")
    lock = cluster.directory / "batches" / "owners" / "open" / "batches" / batch.id / "lock"
    [worker] = holders_of(lock)
    assert worker in cluster.pids("ray::ServeReplica:gateway")
    cluster.kill([worker])
    cluster.wait_until(lambda: client.batches.retrieve(batch.id).status in ENDED, 400, "the end of the batch")
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, num_completed(client, batch)) == ("completed", NUM_LINES)
    assert batch.output_file_id is not None
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(str(n) for n in range(NUM_LINES))


def has_both_gateways(cluster: ServeCluster) -> bool:
    return len(cluster.pids("ray::ServeReplica:gateway")) == 2 and cluster.statuses().get("gateway") == "RUNNING"


def test_a_gigabyte_that_is_announced_is_refused_at_once(cluster: ServeCluster) -> None:
    cluster.wait_until(lambda: has_both_gateways(cluster), 240, "both Gateways")
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1:{cluster.port}\r\ncontent-length: {2**30}\r\n"
        "content-type: multipart/form-data; boundary=XX\r\n\r\n--XX\r\n"
    )
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started < 10
