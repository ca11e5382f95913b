"""`rayshard deploy` and `rayshard status` find a running `rayshard serve` by themselves; when that ends, it drains."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.demo.streams import start_streams, wait_for_ends
from tests.integration.serve_cluster import GATEWAY, ROOT, ServeCluster, model_application

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DATE, ANSWER = "date jan 8 2038 =", "2038-01-08"
UNREACHABLE = {"url": "https://127.0.0.1:1/model.safetensors", "sha256": "0" * 64}  # looked at when a copy starts
SPLIT: dict[str, Any] = {"parallel": {"pipeline": 2, "tensor": 1}, "max_model_len": 2048}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ServeCluster]:
    running = ServeCluster([GATEWAY, model_application("demo", **SPLIT)], drain_s=180)
    try:
        yield running
    finally:
        if running.directory.exists():
            running.stop()


def test_a_good_file_is_deployed_and_a_bad_one_taken_back(cluster: ServeCluster, tmp_path: Path) -> None:
    done = deploy(cluster, tmp_path, model_application("demo", **SPLIT, engine={"max_num_seqs": 4}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{tmp_path / 'serve.yaml'}: every application runs\n")
    changed = answer(cluster)
    assert changed["text"].strip() == ANSWER

    done = deploy(cluster, tmp_path, model_application("demo", **SPLIT, weights=UNREACHABLE))
    assert done.returncode == 1
    assert done.stderr.startswith("demo does not start: weights.url: 127.0.0.1 is the private address 127.0.0.1;")
    assert "What ran before runs again: " in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert answer(cluster) == changed

    shown = json.loads(rayshard("status", "--port", str(cluster.port), "--json").stdout)
    assert {one["name"]: one["state"] for one in shown["applications"]} == {"gateway": "RUNNING", "demo": "RUNNING"}
    assert [(one["name"], len(one["copies"])) for one in shown["applications"][1]["models"]] == [("demo", 1)]


def test_streams_end_and_nothing_new_is_taken_when_it_is_told_to_stop(cluster: ServeCluster) -> None:
    streams = start_streams(cluster, 2, num_tokens=1900)  # they run until the refusal has been looked at
    stopping = threading.Thread(target=cluster.stop)
    stopping.start()
    try:
        cluster.wait_until(lambda: "Draining: 2 requests run; again to end at once" in cluster.output, 30, "draining")
        cluster.wait_until(lambda: cluster.complete("demo", DATE).status_code == 503, 60, "the refusal")
        refused = cluster.complete("demo", DATE)
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["message"].startswith("the server is draining: ")
        assert (cluster.health()[0], cluster.health()[1]["status"]) == (503, "draining")
        assert [stream.is_done for stream in streams] == [False, False]
        assert wait_for_ends(streams, 180) == ["done", "done"]
    finally:
        stopping.join()


def rayshard(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as another terminal would, which knows neither the dashboard nor its token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [str(Path(sys.executable).with_name("rayshard")), *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def deploy(cluster: ServeCluster, directory: Path, model: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Deploy a file with this model in place of the one of its name."""
    http_options = {"host": "127.0.0.1", "port": cluster.port}
    path = directory / "serve.yaml"
    path.write_text(yaml.safe_dump({"http_options": http_options, "applications": [GATEWAY, model]}))
    return rayshard("deploy", str(path), "--timeout-s", "280")


def answer(cluster: ServeCluster) -> dict[str, Any]:
    """What the model answers, as soon as the Gateway knows the copy that runs."""
    cluster.wait_until(lambda: len(cluster.copies("demo")) == 1 and cluster.is_healthy(), 60, "the Gateway")
    choice: dict[str, Any] = cluster.complete("demo", DATE).json()["choices"][0]
    return choice
