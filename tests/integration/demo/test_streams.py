"""Streams on the running cluster: disconnects, unread clients, many at once, and the death of shards."""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.integration.demo.streams import DATE, LONG, body_of, start_streams, undisturbed_texts, wait_for_texts
from tests.integration.serve_cluster import ServeCluster, assert_within, is_alive

ANSWER = "2038-01-08"
NUM_TOKENS = 250  # of a stream that goes on after a loss

pytestmark = pytest.mark.timeout(600)


def test_a_client_that_leaves_frees_its_blocks_within_a_second(cluster: ServeCluster) -> None:
    assert_within(1.0 + 0.5, lambda: seconds_to_free(cluster))  # what /health shows is up to half a second old


def seconds_to_free(cluster: ServeCluster) -> float:
    """From the end of a stream's connection until /health shows its blocks free."""
    cluster.wait_until(lambda: cluster.is_idle("demo"), 30, "idle")
    with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body_of(LONG), timeout=60) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection with its iterator
        next(lines)
        cluster.wait_until(lambda: [copy["num_running"] for copy in cluster.copies("demo")] == [1], 30, "the start")
    return cluster.wait_until(lambda: has_all_blocks(cluster), 30, "giving the blocks back")


def has_all_blocks(cluster: ServeCluster) -> bool:
    return [copy["num_blocks"] - copy["num_free_blocks"] for copy in cluster.copies("demo")] == [0]


def test_a_client_that_does_not_read_slows_nobody_down(cluster: ServeCluster) -> None:
    body = json.dumps(body_of(LONG)).encode()
    with socket.create_connection(("127.0.0.1", cluster.port)) as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        unread.sendall(head.encode() + b"\r\n\r\n" + body)
        for _ in range(5):
            assert cluster.complete("demo", DATE).json()["choices"][0]["text"].strip() == ANSWER
        cluster.wait_until(lambda: cluster.is_idle("demo"), 60, "the end of the unread stream")


def test_a_hundred_requests_at_once_all_answer(cluster: ServeCluster) -> None:
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda day: cluster.complete("demo", f"date jan {1 + day % 28} 2038 ="), range(100)))
    texts = [answer.json()["choices"][0]["text"].strip() for answer in answers]
    assert texts == [f"2038-01-{1 + day % 28:02d}" for day in range(100)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_go_on_when_a_shard_is_lost(cluster: ServeCluster, number: signal.Signals) -> None:
    lose_a_shard(cluster, number, victim=0, texts=undisturbed_texts(cluster, 8, NUM_TOKENS))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_ten_lost_shards_are_all_rebuilt(cluster: ServeCluster, number: signal.Signals) -> None:
    texts = undisturbed_texts(cluster, 8, NUM_TOKENS)
    for turn in range(10):
        lose_a_shard(cluster, number, victim=turn % 2, texts=texts)


def test_streams_go_on_when_their_router_dies(cluster: ServeCluster) -> None:
    texts = undisturbed_texts(cluster, 4, NUM_TOKENS)
    streams = start_streams(cluster, 4, NUM_TOKENS)
    old = cluster.pids("ray::ServeReplica:demo")
    os.kill(old[0], signal.SIGKILL)
    cluster.wait_until(lambda: not cluster.is_healthy(), 30, "noticing")
    cluster.wait_until(cluster.is_healthy, 240, "a new Router")
    assert wait_for_texts(streams, 120) == texts
    assert cluster.complete("demo", DATE).json()["choices"][0]["text"].strip() == ANSWER
    assert cluster.pids("ray::ServeReplica:demo") != old


def lose_a_shard(cluster: ServeCluster, number: signal.Signals, victim: int, texts: list[str]) -> None:
    """Lose one of two shards under eight streams; check every promise about that."""
    num_starts = len(load_times_s(cluster))
    streams = start_streams(cluster, 8, NUM_TOKENS)
    cluster.wait_until(lambda: len(cluster.pids("ray::Shard")) == 2, 30, "two shards")
    pids = cluster.pids("ray::Shard")
    lost = psutil.Process(pids[victim])
    lost.send_signal(number)
    killed = time.monotonic()
    noticed_s = cluster.wait_until(lambda: not cluster.is_healthy(), 30, "noticing the loss")
    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(cluster.complete, "demo", DATE)  # waits for the rebuild, and for those that go on
        cluster.wait_until(cluster.is_healthy, 180, "the rebuild")
        healthy_s = time.monotonic() - killed
        assert meanwhile.result().json()["choices"][0]["text"].strip() == ANSWER, meanwhile.result().text
    cluster.wait_until(lambda: len(load_times_s(cluster)) > num_starts, 60, "the log's line")
    load_s = load_times_s(cluster)[-1]
    print(f"{number.name} noticed_s={noticed_s:.2f} healthy_s={healthy_s:.1f} load_s={load_s:.1f}")
    assert wait_for_texts(streams, 120) == texts
    assert noticed_s < 5.0
    assert healthy_s - noticed_s < load_s + 5.0  # while the streams go on
    assert cluster.complete("demo", DATE).json()["choices"][0]["text"].strip() == ANSWER
    cluster.wait_until(lambda: not is_alive(lost), 30, "the end of what was replaced")
    assert pids[1 - victim] in cluster.pids("ray::Shard"), "the other keeps its process"


def load_times_s(cluster: ServeCluster) -> list[float]:
    """What each start of the demo's shards took: processes, imports, weights, warm-up."""
    lines = [line for line in cluster.log.splitlines() if "model copy ready" in line and "model=demo " in line]
    return [float(line.rsplit("start_s=", 1)[1].split()[0]) for line in lines]
