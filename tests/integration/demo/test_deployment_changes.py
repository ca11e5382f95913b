"""Models that come, scale and go while others are served."""

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.cli.main import main
from tests.integration.demo.streams import start_streams, wait_for_ends
from tests.integration.load import ANSWER, DATE, constant_requests
from tests.integration.serve_cluster import DEMO_MODEL, ServeCluster, model_application

pytestmark = pytest.mark.timeout(900)  # on a busy machine a process takes half a minute to start


@pytest.fixture
def restored(cluster: ServeCluster) -> Iterator[ServeCluster]:
    """Gone back to what ran before, with nothing on its way or still leaving."""
    before, num_before = cluster.applications, cluster.num_processes()
    yield cluster
    cluster.deploy(before)
    running = {one["name"]: "RUNNING" for one in before}
    cluster.wait_until(lambda: cluster.statuses() == running, 240, "what ran before")
    cluster.wait_until(lambda: cluster.num_processes() == num_before, 120, "the end of what does not run any more")
    cluster.wait_until(lambda: is_as_before(*cluster.health()), 60, "health")


def is_as_before(status: int, health: dict[str, Any]) -> bool:
    return status == 200 and set(health["models"]) == {"demo"} and not health["detail"]


@pytest.mark.slow
def test_a_second_model_comes_without_touching_the_first(restored: ServeCluster) -> None:
    cluster = restored
    pids = cluster.pids("ray::Shard")
    second = model_application("second", parallel={"pipeline": 1, "tensor": 2})
    with constant_requests(cluster, "demo") as failures, ThreadPoolExecutor(1) as executor:
        deploying = executor.submit(cluster.deploy, [*cluster.applications, second])  # its end may come after the start
        seen: list[tuple[int, dict[str, Any]]] = []
        unwell: list[dict[str, Any]] = []

        def is_there() -> bool:
            status, health = cluster.health()
            seen.append((status, health.get("newcomers", {})))
            if status != 200:
                unwell.append(health)
            return status == 200 and "second" in health["models"]

        cluster.wait_until(is_there, 480, "the second model")
        deploying.result()
        assert not unwell, unwell
        assert (200, {"second": {"state": "starting", "detail": ""}}) in seen
        assert cluster.complete("second", DATE).json()["choices"][0]["text"].strip() == ANSWER
        failures.wait_for(200)
    assert failures.seen == []
    assert set(pids) <= set(cluster.pids("ray::Shard"))


@pytest.mark.slow
def test_a_file_that_cannot_be_built_leaves_the_model_served_and_says_why(restored: ServeCluster) -> None:
    cluster = restored
    pids = cluster.pids("ray::ServeReplica:demo")
    others = [one for one in cluster.applications if one["name"] != "demo"]
    misspelt = [model_application(name, max_model_lenn=512) for name in ("demo", "new")]
    with constant_requests(cluster, "demo") as failures:
        cluster.deploy([*others, *misspelt])
        cluster.wait_until(lambda: has_failed(cluster.health()[1], ["demo", "new"]), 120, "the failure")
        failures.wait_for(failures.num_done + 100)
        status, health = cluster.health()
    assert failures.seen == []
    assert (status, list(health["models"])) == (200, ["demo"])
    assert health["newcomers"]["new"]["state"] == "failed"
    assert "max_model_lenn" in health["newcomers"]["new"]["detail"]
    assert cluster.pids("ray::ServeReplica:demo") == pids


def has_failed(health: dict[str, Any], names: list[str]) -> bool:
    return all(f"{name}: " in health["detail"] for name in names) and health["detail"].count("max_model_lenn") >= 2


@pytest.mark.slow
def test_callers_wait_while_the_only_copy_is_replaced_by_another_version(restored: ServeCluster) -> None:
    cluster = restored
    pids = cluster.pids("ray::ServeReplica:demo")
    others = [one for one in cluster.applications if one["name"] != "demo"]

    def is_replaced() -> bool:
        too_long = cluster.complete("demo", DATE, max_tokens=600)
        return too_long.status_code == 400 and "512" in too_long.text

    with constant_requests(cluster, "demo") as failures:
        assert not is_replaced()
        cluster.deploy([*others, model_application("demo", max_model_len=512, parallel={"pipeline": 2, "tensor": 1})])
        cluster.wait_until(is_replaced, 180, "the new copy")  # /health may not have seen that there was none
        cluster.wait_until(cluster.is_healthy, 60, "health")
        failures.wait_for(failures.num_done + 20)
    assert failures.seen == []
    assert not set(pids) & set(cluster.pids("ray::ServeReplica:demo"))


@pytest.mark.slow
def test_quantized_twins_are_served_and_a_model_that_fails_its_gate_is_not(
    restored: ServeCluster, tmp_path: Path
) -> None:
    cluster, artifact, texts = restored, tmp_path / "int8", tmp_path / "texts.txt"
    texts.write_text("".join(f"date jan {day} 2038 =2038-01-{day:02d}\n" for day in range(1, 29)))
    command = ["compress", "quantize", str(DEMO_MODEL), str(artifact), "--scheme", "int8", "--texts", str(texts)]
    assert main([*command, "--embedding", "--head"]) == 0
    twin = model_application("twin", parallel={"pipeline": 2}, quantization={"scheme": "int8", "include": ["head"]})
    gated = model_application("gated", source=artifact, parallel={"tensor": 2}, quality={"max_kl": 0.1})
    cluster.deploy([*cluster.applications, twin, gated])
    cluster.wait_until(lambda: cluster.health()[1]["models"].keys() >= {"twin", "gated"}, 180, "the twins")
    cluster.wait_until(cluster.is_healthy, 180, "health")
    for name in ("twin", "gated"):
        assert cluster.complete(name, DATE).json()["choices"][0]["text"].strip() == ANSWER
    refused = model_application("refused", source=artifact, quality={"max_kl": 0.0})
    cluster.deploy([*cluster.applications, refused])
    cluster.wait_until(lambda: "is above quality.max_kl=0" in cluster.log, 120, "the refusal")
    assert cluster.copies("refused") == []
    assert cluster.complete("demo", DATE).json()["choices"][0]["text"].strip() == ANSWER


@pytest.mark.slow
def test_autoscaling_adds_a_copy_under_load_and_takes_it_away(restored: ServeCluster) -> None:
    cluster = restored
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 3,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
    }
    application = model_application("scaled", router={"autoscaling_config": scaling})
    cluster.deploy([*cluster.applications, application])
    cluster.wait_until(lambda: len(cluster.copies("scaled")) == 1 and cluster.is_healthy(), 180, "the model")
    with constant_requests(cluster, "scaled", num_threads=12, max_tokens=200, ignore_eos=True) as failures:
        cluster.wait_until(lambda: len(cluster.copies("scaled")) == 2, 180, "the second copy")
        failures.wait_for(failures.num_done + 24)
    cluster.wait_until(lambda: len(cluster.copies("scaled")) == 1, 180, "the second copy's end")
    assert failures.seen == []
    assert cluster.complete("scaled", DATE).json()["choices"][0]["text"].strip() == ANSWER


@pytest.mark.slow
def test_copies_follow_the_queue_up_down_to_none_and_back_without_a_failed_request(restored: ServeCluster) -> None:
    cluster = restored
    scaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_ttft_s": 0.5,
        "downscale_delay_s": 4.0,
        "idle_delay_s": 8.0,
    }
    application = model_application("scaled", autoscaling=scaling, engine={"max_num_seqs": 4})
    cluster.deploy([*cluster.applications, application])
    cluster.wait_until(lambda: len(cluster.copies("scaled")) == 1 and cluster.is_healthy(), 180, "the model")
    with constant_requests(cluster, "scaled", num_threads=16, max_tokens=200, ignore_eos=True) as failures:
        cluster.wait_until(lambda: len(cluster.copies("scaled")) == 2, 180, "the second copy")
        failures.wait_for(failures.num_done + 32)
    assert failures.seen == []
    with constant_requests(cluster, "scaled", num_threads=1) as failures:
        cluster.wait_until(lambda: len(cluster.copies("scaled")) == 1, 180, "the second copy's end")
        failures.wait_for(failures.num_done + 10)
    assert failures.seen == []
    cluster.wait_until(lambda: cluster.health()[1].get("asleep") == ["scaled"], 180, "the model's sleep")
    assert (cluster.copies("scaled"), cluster.is_healthy()) == ([], True)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: cluster.complete("scaled", DATE), range(4)))
    assert [answer.json()["choices"][0]["text"].strip() for answer in answers] == [ANSWER] * 4
    with constant_requests(cluster, "scaled", num_threads=1) as failures:  # so that it does not fall asleep again
        cluster.wait_until(lambda: "asleep" not in cluster.health()[1], 60, "the word that it is awake")
    assert failures.seen == []


@pytest.mark.slow
def test_a_full_queue_refuses_with_a_time_to_come_again(restored: ServeCluster) -> None:
    cluster = restored
    small = model_application("small", max_model_len=2048, engine={"max_num_seqs": 1, "max_queued": 2})
    cluster.deploy([*cluster.applications, small])
    cluster.wait_until(lambda: len(cluster.copies("small")) == 1 and cluster.is_healthy(), 180, "the model")
    with ThreadPoolExecutor(3) as pool, httpx.Client() as client:
        taken: list[Future[httpx.Response]] = []
        for num_waiting in range(3):  # the first one runs until others have been refused
            taken.append(pool.submit(cluster.complete, "small", DATE, max_tokens=2000, ignore_eos=True))
            cluster.wait_until(partial(has_work, cluster, "small", (1, num_waiting)), 30, "its turn")
        body = {"model": "small", "prompt": DATE}
        refused = [client.post(f"{cluster.url}/v1/completions", json=body, timeout=60) for _ in range(3)]
    assert [one.result().status_code for one in taken] == [200] * 3
    assert [answer.status_code for answer in refused] == [429] * 3
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert "max_queued=2" in answer.json()["error"]["message"]


def has_work(cluster: ServeCluster, model: str, wanted: tuple[int, int]) -> bool:
    return num_running_and_waiting(cluster, model) == [wanted]


def num_running_and_waiting(cluster: ServeCluster, model: str) -> list[tuple[int, int]]:
    return [(copy["num_running"], copy["num_waiting"]) for copy in cluster.copies(model)]


@pytest.mark.slow
def test_a_copy_that_is_taken_away_lets_its_streams_end(restored: ServeCluster) -> None:
    cluster = restored
    split = {"pipeline": 2, "tensor": 1}
    two = [model_application("demo", router={"num_replicas": 2}, parallel=split)]
    others = [one for one in cluster.applications if one["name"] != "demo"]
    cluster.deploy([*others, *two])
    cluster.wait_until(lambda: [copy["state"] for copy in cluster.copies("demo")] == ["ready"] * 2, 180, "two copies")
    streams = start_streams(cluster, 8)
    cluster.wait_until(lambda: all_run(cluster, "demo", 2), 30, "both are busy")
    cluster.deploy([*others, model_application("demo", router={"num_replicas": 1}, parallel=split)])
    assert wait_for_ends(streams, 120) == ["done"] * 8
    cluster.wait_until(lambda: len(cluster.copies("demo")) == 1 and cluster.is_healthy(), 120, "one copy")


def all_run(cluster: ServeCluster, model: str, num_copies: int) -> bool:
    counts = num_running_and_waiting(cluster, model)
    return len(counts) == num_copies and all(num_running for num_running, _ in counts)


@pytest.mark.slow
def test_a_gateway_that_is_stopped_stops_no_other(restored: ServeCluster) -> None:
    cluster = restored
    models = [one for one in cluster.applications if one["name"] != "gateway"]
    (gateway,) = (one for one in cluster.applications if one["name"] == "gateway")
    patient = {"name": "Gateway", "num_replicas": 2, "health_check_timeout_s": 60}  # Serve is to let it stand
    cluster.deploy([{**gateway, "deployments": [patient]}, *models])
    cluster.wait_until(lambda: len(cluster.pids("ray::ServeReplica:gateway")) == 2, 240, "two Gateways")
    cluster.wait_until(lambda: num_answering(cluster) == 2, 120, "both to answer")
    streams = start_streams(cluster, 16)
    stopped, _other = cluster.pids("ray::ServeReplica:gateway")
    os.kill(stopped, signal.SIGSTOP)
    try:
        stopped_s = time.monotonic()
        under_way = [stream for stream in streams if not stream.is_done]
        cluster.wait_until(lambda: any(stream.is_done for stream in under_way), 60, "the other Gateway's streams")
        time.sleep(max(0.0, 13 - (time.monotonic() - stopped_s)))  # calls that Serve counts have ended meanwhile
        assert 0 < len([stream for stream in under_way if stream.is_done]) < len(under_way)
        assert not any(stream.error for stream in streams)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert wait_for_ends(streams, 120) == ["done"] * 16  # the stopped one's too: nothing was lost
    assert cluster.complete("demo", DATE).json()["choices"][0]["text"].strip() == ANSWER


def num_answering(cluster: ServeCluster) -> int:
    """Gateways that the proxy knows and that know the demo, of eight answers."""
    texts = [httpx.get(f"{cluster.url}/metrics", timeout=30).text for _ in range(8)]
    ready = re.compile(r'^rayshard_model_ready\{gateway="([^"]+)",model="demo"\} 1', re.MULTILINE)
    return len({name for text in texts for name in ready.findall(text)})
