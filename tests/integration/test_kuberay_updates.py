"""`serveConfigV2` of what `rayshard kuberay` prints, applied as KubeRay's operator applies it, while clients ask.

The tests are steps of one story, in this order: each begins with what the one before it has left.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.integration.load import ANSWER, DATE, Failures, constant_requests, constant_streams
from tests.integration.serve_cluster import DEMO_MODEL, GATEWAY, ServeCluster, model_application

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NEW_ANSWER = ANSWER.replace("-", "/")
START_S = 300.0
SAID_S = 60.0
NUM_CPUS = 4  # of the pod that has both models
IN_PODS = "/models"
PATIENT = {**GATEWAY, "args": {"queue_timeout_s": START_S}}  # an only copy ends before its successor starts


class Operator:
    """What KubeRay 1.7's operator does for one RayService (its `dashboard_httpclient.go`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # a volume that pods have at /models
        self.pods: Any = None
        content = self._mounted(self.printed(demo("demo", pipeline=2)))
        room = {"RAY_OVERRIDE_RESOURCES": f'{{"CPU": {NUM_CPUS}}}'}
        self.cluster = ServeCluster(content["applications"], environment=room)
        self._headers = {"x-ray-authorization": f"Bearer {self.cluster.token}"}

    def printed(self, *models: dict[str, Any]) -> str:
        """`serveConfigV2` of a file with these models, as the command prints it; `pods` is what else it says."""
        path = self.folder / "serve.yaml"
        http = {"host": "127.0.0.1", "port": 8000}
        path.write_text(yaml.safe_dump({"http_options": http, "applications": [PATIENT, *models]}))
        place = ["--in-pod", f"{self.folder}={IN_PODS}", "--models-claim", "models"]
        text = rayshard("kuberay", str(path), *place)
        (service,) = (one for one in yaml.safe_load_all(text) if one["kind"] == "RayService")
        self.pods = service["spec"]["rayClusterConfig"]
        config: str = service["spec"]["serveConfigV2"]
        return config

    def apply(self, config: str) -> httpx.Response:
        """PUT it, as JSON; what comes late is put again, as the operator does at its next look."""
        url = f"{self.cluster.dashboard}/api/serve/applications/"
        for _ in range(5):
            try:
                return httpx.put(url, json=self._mounted(config), headers=self._headers, timeout=10)
            except httpx.TimeoutException:
                time.sleep(2)
        raise AssertionError("Serve takes no configuration")

    def applications(self) -> dict[str, dict[str, Any]]:
        """Those of the file, as the operator asks for them."""
        url = f"{self.cluster.dashboard}/api/serve/applications/?api_type=declarative"
        found: dict[str, dict[str, Any]] = httpx.get(url, headers=self._headers, timeout=10).json()["applications"]
        return found

    def states(self) -> dict[str, str]:
        """By application; all RUNNING makes the RayService ready."""
        return {name: application["status"] for name, application in self.applications().items()}

    def wait_until_ready(self, *names: str) -> None:
        """As the operator waits for these applications, and no others; the Gateway knows them a second later."""
        expected = dict.fromkeys(("gateway", *names), "RUNNING")
        self.cluster.wait_until(lambda: self.states() == expected, START_S, f"{expected}")
        self.cluster.wait_until(lambda: self.cluster.health()[1]["models"].keys() == {*names}, 10, f"{names}")

    def _mounted(self, config: str) -> Any:
        return yaml.safe_load(config.replace(f"{IN_PODS}/", f"{self.folder}/"))


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(DEMO_MODEL, folder / "demo")
    with_slashes(folder / "demo", folder / "slashes")
    one = Operator(folder)
    try:
        yield one
    finally:
        one.cluster.stop()


def with_slashes(source: Path, changed: Path) -> None:
    """A model with other weights, that writes `/` where the first one writes `-`: both know the two alike."""
    shutil.copytree(source, changed)
    weights = load_file(source / "model.safetensors")
    rows = [ord("-"), ord("/")]
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name][rows] = weights[name][rows[::-1]]
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def clients(operator: Operator, *answers: str) -> Iterator[list[Failures]]:
    """Whole answers, which are among these, and streams: of the model `demo`, without pause; none fails."""
    cluster = operator.cluster
    with ExitStack() as stack:
        both = [
            stack.enter_context(constant_requests(cluster, "demo", num_threads=2, answers=answers, timeout_s=START_S)),
            stack.enter_context(constant_streams(cluster, "demo", num_tokens=100, timeout_s=START_S)),
        ]
        yield both
        for one in both:
            one.wait_for(one.num_done + 3)
    assert [one.seen for one in both] == [[], []]


def demo(source: str, **parallel: int) -> dict[str, Any]:
    return model_application("demo", source=Path(IN_PODS) / source, parallel=parallel)


def test_the_file_that_runs_changes_nothing(operator: Operator) -> None:
    config, pids = operator.printed(demo("demo", pipeline=2)), all_pids(operator)
    assert yaml.safe_load(config)["http_options"] == {"host": "0.0.0.0", "port": 8000}
    with clients(operator, ANSWER):
        assert operator.apply(config).status_code == 200
        operator.wait_until_ready("demo")
    assert all_pids(operator) == pids


def test_new_weights_are_taken(operator: Operator) -> None:
    pods = operator.pods
    config = operator.printed(demo("slashes", pipeline=2))
    assert operator.pods == pods, "a change of pods would be another cluster"
    with clients(operator, ANSWER, NEW_ANSWER):
        assert operator.apply(config).status_code == 200
        operator.cluster.wait_until(lambda: answer_of(operator, "demo") == NEW_ANSWER, START_S, "the new weights")
        operator.wait_until_ready("demo")
    assert answer_of(operator, "demo") == NEW_ANSWER


def test_another_split_is_taken(operator: Operator) -> None:
    pods, shards = operator.pods, operator.cluster.pids("ray::Shard")
    config = operator.printed(demo("slashes", tensor=2))
    assert operator.pods == pods
    with clients(operator, NEW_ANSWER):
        assert operator.apply(config).status_code == 200
        operator.cluster.wait_until(
            lambda: len(new := operator.cluster.pids("ray::Shard")) == 2 and not {*new} & {*shards}, START_S, "shards"
        )
        operator.wait_until_ready("demo")
    (copy,) = operator.cluster.copies("demo")
    assert copy["state"] == "ready"


def test_a_second_model_comes_beside_it(operator: Operator) -> None:
    shards = operator.cluster.pids("ray::Shard")
    config = operator.printed(demo("slashes", tensor=2), second())
    (group,) = operator.pods["workerGroupSpecs"]
    assert int(group["rayStartParams"]["num-cpus"]) == NUM_CPUS
    with clients(operator, NEW_ANSWER):
        assert operator.apply(config).status_code == 200
        operator.wait_until_ready("demo", "second")
        assert answer_of(operator, "second") == ANSWER
    assert {*shards} < {*operator.cluster.pids("ray::Shard")}


def test_a_bad_file_leaves_what_runs_and_says_why_until_a_good_one_comes(operator: Operator) -> None:
    cluster, pids = operator.cluster, all_pids(operator)
    good = operator.printed(demo("slashes", tensor=2), second())
    bad = good.replace("max_model_len: 1024", "max_model_lenn: 1024", 1).replace(f"{IN_PODS}/demo", f"{IN_PODS}/dmeo")
    reasons = {"demo": "max_model_lenn", "second": "dmeo"}
    with clients(operator, NEW_ANSWER):
        assert operator.apply(bad).status_code == 200
        cluster.wait_until(lambda: operator.states() == {"gateway": "RUNNING", **failed(reasons)}, SAID_S, "Serve")
        cluster.wait_until(lambda: are_told(cluster.health()[1].get("detail", ""), reasons), SAID_S, "/health")
        for name, reason in reasons.items():
            assert reason in operator.applications()[name]["message"]
        assert are_told(rayshard("status", "--port", str(cluster.port)), reasons)
        status, health = cluster.health()
        assert (status, sorted(health["models"])) == (200, ["demo", "second"])
        assert answer_of(operator, "second") == ANSWER
        assert all_pids(operator) == pids
        assert operator.apply(good).status_code == 200
        operator.wait_until_ready("demo", "second")
        cluster.wait_until(lambda: not cluster.health()[1].get("detail"), SAID_S, "health without a word")
    assert all_pids(operator) == pids


def test_what_serve_refuses_at_once_changes_nothing(operator: Operator) -> None:
    before, pids = operator.states(), all_pids(operator)
    bad = operator.printed(demo("demo", pipeline=2)).replace("route_prefix: null", "route_prefixes: null")
    with clients(operator, NEW_ANSWER):
        refused = operator.apply(bad)
        assert (refused.status_code, "route_prefixes" in refused.text) == (400, True), refused.text
    assert operator.states() == before
    assert all_pids(operator) == pids


def second() -> dict[str, Any]:
    return model_application("second", source=Path(IN_PODS) / "demo")


def all_pids(operator: Operator) -> list[int]:
    return operator.cluster.pids("ray::ServeReplica:") + operator.cluster.pids("ray::Shard")


def failed(reasons: dict[str, str]) -> dict[str, str]:
    return dict.fromkeys(reasons, "DEPLOY_FAILED")


def are_told(text: str, reasons: dict[str, str]) -> bool:
    return all(f"{name}: " in text and reason in text for name, reason in reasons.items())


def answer_of(operator: Operator, model: str) -> str:
    answer = operator.cluster.complete(model, DATE, START_S)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text.strip()


def rayshard(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("rayshard")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
