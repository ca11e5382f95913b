"""One cluster of up to four Ray nodes: shards of one model on two of them, nodes that are lost, and nodes that join.

The tests are steps of one story, in this order: each begins with what the one before it has left.
"""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.nodes.node_cluster import NodeCluster, RayNode
from tests.integration.serve_cluster import GATEWAY, event_data, model_application

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DATE, ANSWER = "date jan 8 2038 =", "2038-01-08"
SAID_S = 60.0  # with the time in which the application is built, as a process that imports all of it
FRONT = {
    **GATEWAY,
    "deployments": [{"name": "Gateway", "ray_actor_options": {"num_cpus": 0.05, "resources": {"front": 1}}}],
}
# Gateway, one stage and the Router of `split` have room on the first node, its other stage alone on one of two CPUs,
# and all of `whole` on one of four.
WHOLE = model_application("whole", device={"cpu_threads": 1, "cpus_per_shard": 3.93})
SPLIT = model_application("split", parallel={"pipeline": 2}, device={"cpu_threads": 1, "cpus_per_shard": 1.98})


class Story:
    """What the tests hand on."""

    def __init__(self) -> None:
        self.cluster = NodeCluster()
        self.head = self.cluster.add("127.0.0.2", 3, resources={"front": 1})
        self.nodes: dict[str, RayNode] = {}

    def add(self, name: str, address: str, num_cpus: int) -> None:
        """A node joins."""
        self.nodes[name] = self.cluster.add(address, num_cpus)


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    one = Story()
    try:
        yield one
    finally:
        one.cluster.stop()


def test_a_copy_that_no_node_has_room_for_is_told_everywhere_and_starts_when_one_joins(story: Story) -> None:
    cluster = story.cluster
    deploying = cluster.deploy([FRONT, WHOLE])
    reason = (
        "waits for room: a stage, whose ranks share a node, needs 3.93 CPUs on one node, and no node has more than 3"
    )
    cluster.wait_until(lambda: "whole" in cluster.health().get("newcomers", {}), 240, "the Gateway")
    cluster.wait_until(lambda: newcomer(cluster, "whole").startswith(reason), SAID_S, "the word of /health")
    cluster.wait_until(lambda: f"whole {reason}" in deploying.printed, SAID_S, "the word of rayshard deploy")
    assert f"whole: {reason}" in cluster.status()
    assert cluster.logged(f"application=whole {reason}")
    story.add("large", "127.0.0.4", 4)
    cluster.wait_until(lambda: cluster.is_ready("whole"), 240, "the start")
    assert "every application runs" in deploying.ended()


def test_a_model_over_two_nodes_answers_as_on_one(story: Story) -> None:
    cluster = story.cluster
    deploying = cluster.deploy([FRONT, WHOLE, SPLIT])
    reason = "waits for room: a copy needs 4.01 CPUs, and of 7 in the cluster 2.97 are free"
    cluster.wait_until(lambda: newcomer(cluster, "split").startswith(reason), SAID_S, "the word of /health")
    assert f"split: {reason}" in cluster.status()
    story.add("second", "127.0.0.3", 2)
    cluster.wait_until(lambda: cluster.is_ready("split"), 240, "the start")
    assert "every application runs" in deploying.ended()
    assert [len(node.processes("ray::Shard")) for node in (story.head, story.nodes["second"])] == [1, 1]
    for prompt in (DATE, "date 3 may 1999 ="):
        answers = [cluster.complete(model, prompt) for model in ("whole", "split")]
        assert answers[0] == answers[1]
    assert cluster.complete("split", DATE)["text"].strip() == ANSWER


def test_links_between_nodes_are_at_the_nodes_addresses_and_those_within_one_on_loopback(story: Story) -> None:
    gateway, router = (
        story.head.processes("ray::ServeReplica:gateway"),
        story.nodes["large"].processes("ray::ServeRepl"),
    )
    assert len(gateway) == len(router) == 1
    calls = listening(router[0])  # the Router of `whole` listens on its node's address, for this Gateway
    assert {address.ip for address in remotes(gateway[0]) if address in calls} == {"127.0.0.4"}
    tokens = remotes(router[0]) & listening(gateway[0])
    assert {address.ip for address in tokens} == {"127.0.0.2"}


def test_a_node_without_a_shard_of_the_model_is_lost_unnoticed(story: Story) -> None:
    cluster = story.cluster
    before = cluster.complete("split", DATE)
    events: list[dict[str, Any]] = []
    reading = threading.Thread(target=read_stream, args=(cluster.url, events))
    reading.start()
    cluster.wait_until(lambda: bool(events), 60, "the stream")
    cluster.kill(story.nodes["large"])
    while reading.is_alive() or "whole: " not in told(cluster):  # until Serve knows it too
        assert {copy["state"] for copy in copies(cluster, "split")} <= {"ready"}
        assert cluster.complete("split", DATE) == before
        reading.join(0.2)
    assert sum(len(event["choices"][0].get("text", "")) for event in events) > 0
    assert not any("error" in event for event in events)
    assert num_rebuilds(cluster, "split") == [0]


def test_a_shard_lost_with_its_node_comes_back_on_one_that_joins(story: Story) -> None:
    cluster = story.cluster
    before = cluster.complete("split", DATE)
    cluster.kill(story.nodes["second"])
    cluster.wait_until(lambda: not cluster.is_ready("split"), 30, "the loss")
    reason = ", waits for room: a copy needs 1.98 CPUs, and of 3 in the cluster 0.92 are free; "
    cluster.wait_until(
        lambda: "split: rebuilding" in told(cluster) and reason in told(cluster), SAID_S, "the word of it"
    )
    story.add("third", "127.0.0.5", 2)
    cluster.wait_until(lambda: cluster.is_ready("split"), 180, "the repair")
    assert len(story.nodes["third"].processes("ray::Shard")) == 1
    assert cluster.complete("split", DATE) == before
    assert num_rebuilds(cluster, "split") == [1], "the same Router, on the first node"


def test_a_copy_lost_with_its_node_comes_back_whole_on_one_that_joins(story: Story) -> None:
    cluster = story.cluster
    assert "whole: waits for room: a stage, whose ranks share a node, needs 3.93 CPUs on one node" in cluster.status()
    story.add("fourth", "127.0.0.6", 4)
    cluster.wait_until(lambda: cluster.is_ready("whole"), 240, "the start")
    assert cluster.complete("whole", DATE) == cluster.complete("split", DATE)
    assert cluster.wait_until(lambda: not told(cluster), 60, "health without a word") >= 0


def copies(cluster: NodeCluster, model: str) -> list[dict[str, Any]]:
    """Those that have told their state within three seconds."""
    found: list[dict[str, Any]] = cluster.health()["models"].get(model, [])
    return found


def num_rebuilds(cluster: NodeCluster, model: str) -> list[int]:
    """Of each copy, when all that were there have told it."""
    cluster.wait_until(lambda: cluster.is_ready(model), 30, "a copy's state")
    return [copy["counts"]["num_rebuilds"] for copy in copies(cluster, model)]


def told(cluster: NodeCluster) -> str:
    detail: str = cluster.health().get("detail", "")
    return detail


def newcomer(cluster: NodeCluster, application: str) -> str:
    found: dict[str, str] = cluster.health().get("newcomers", {}).get(application, {"detail": ""})
    return found["detail"]


def listening(process: psutil.Process) -> set[Any]:
    return {one.laddr for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}


def remotes(process: psutil.Process) -> set[Any]:
    return {one.raddr for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED}


def read_stream(url: str, events: list[dict[str, Any]]) -> None:
    body = {"model": "split", "prompt": DATE, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        events += [data for line in answer.iter_lines() if (data := event_data(line)) is not None]
