"""`rayshard status`, from a stand-in for Ray's dashboard and for the Gateway's /health."""

import json
from collections.abc import Callable
from typing import get_args

import msgspec
import pytest

from serve_app.backend.protocol import Newcomer
from serve_app.cli import status_command
from serve_app.cli.cluster_status import gateway_url, read_status
from serve_app.cli.ray_dashboard import Dashboard
from serve_app.cli.serve_view import ApplicationView, DeploymentView, HttpOptions, ReplicaView, ServeView
from serve_app.cli.status_command import show_status, status_text
from serve_app.gateway.bodies.others import HealthBody
from serve_app.types.models import CopyState, WaitsFor
from tests.unit.cli.fake_dashboard import DEPLOYING, FakeServe, fake_dashboard

DASHBOARD = "http://127.0.0.1:8265"


def copy(state: str, num_running: int, num_waiting: int, bubble: float | None = None, **changes: object) -> CopyState:
    return msgspec.convert(
        {
            "replica_id": "r",
            "state": state,
            "detail": "",
            "num_running": num_running,
            "num_waiting": num_waiting,
            "num_free_blocks": 1,
            "num_blocks": 2,
            "bubble": bubble,
            **changes,
        },
        CopyState,
    )


def application(name: str, status: str, args: object, message: str = "") -> ApplicationView:
    replicas = [ReplicaView("RUNNING" if status == "RUNNING" else "STARTING")]
    deployment = DeploymentView("Router", "HEALTHY", "", 2, [*replicas, ReplicaView("STARTING")])
    return ApplicationView(name, status, message, 1.0, {"args": args}, {"Router": deployment})


VIEW = ServeView(
    {
        "demo": application("demo", "RUNNING", {"name": "chat"}),
        "small": application("small", "RUNNING", {"models": [{"name": "a"}, {"name": "b"}]}),
        "new": application("new", "DEPLOY_FAILED", {"name": "new"}, "Traceback\nit is why"),
    },
    HttpOptions("0.0.0.0", 8000),
)
COPIES = {
    "chat": [
        copy("ready", 3, 1, 0.1, stage_bubbles=[0.1, 0.3], num_free_blocks=0, waits_for="kv_cache"),
        copy("ready", 2, 0, 0.2, stage_bubbles=[0.2, 0.2], num_blocks=6),
        copy("rebuilding", 0, 0, detail="start 1 failed: no memory", num_free_blocks=0, num_blocks=0),
    ],
    "a": [copy("ready", 0, 2, num_free_blocks=0, num_blocks=0, waits_for="step")],
}


def answering(body: HealthBody) -> Callable[[str], bytes]:
    def read(url: str) -> bytes:
        assert url == "http://127.0.0.1:8000/health"
        return msgspec.json.encode(body)

    return read


def test_the_table_tells_states_copies_and_queues() -> None:
    text = status_text(read_status(VIEW, DASHBOARD, answering(HealthBody("ok", "", COPIES)), {}))
    assert text.splitlines() == [
        "application  state          copies  model  is                     running  waiting  kv   bubble",
        "demo         RUNNING        1 of 2  chat   2 ready, 1 rebuilding  5        1        88%  15% (15%, 25%)",
        "small        RUNNING        1 of 2  a      1 ready                0        2",
        "new          DEPLOY_FAILED  0 of 2",
        "Gateway at http://127.0.0.1:8000: ok",
        "new: Traceback",
        "it is why",
        "chat: a copy is rebuilding: start 1 failed: no memory",
        "chat: 1 waiting for room in the KV cache: raise engine.kv_cache_bytes, or run more copies",
        "a: 2 waiting for the next step",
    ]


def test_every_reason_that_a_scheduler_gives_is_told_in_words() -> None:
    assert set(get_args(WaitsFor)) == {"", *status_command._WAITS}


def test_what_a_first_deploy_waits_for_is_told() -> None:
    view = ServeView({"new": application("new", "DEPLOYING", {"name": "new"})}, HttpOptions("0.0.0.0", 8000))
    body = HealthBody("ok", newcomers={"new": Newcomer("waiting", "1 of 4 GPUs is free")})
    assert "new: 1 of 4 GPUs is free" in status_text(read_status(view, DASHBOARD, answering(body), {})).splitlines()
    keyed = status_text(read_status(view, DASHBOARD, answering(HealthBody("ok")), {"new": "no node has 4 GPUs"}))
    assert "new: no node has 4 GPUs" in keyed.splitlines()


def test_a_gateway_that_is_silent_or_wants_a_key_leaves_serves_view() -> None:
    def refuse(_url: str) -> bytes:
        raise ConnectionRefusedError("Connection refused")

    silent = status_text(read_status(VIEW, DASHBOARD, refuse, {}))
    assert "demo         RUNNING        1 of 2\n" in silent
    assert "Gateway at http://127.0.0.1:8000: unknown: http://127.0.0.1:8000/health does not answer (Conn" in silent
    closed = read_status(VIEW, DASHBOARD, answering(HealthBody("ok")), {})
    assert [one.models for one in closed.applications] == [[], [], []]
    assert closed.health == "ok"
    assert read_status(VIEW, DASHBOARD, lambda _url: b"<html>", {}).health == "unknown"


@pytest.mark.parametrize(
    ("host", "dashboard", "expected"),
    [
        ("127.0.0.1", DASHBOARD, "http://127.0.0.1:8000"),
        ("0.0.0.0", "https://head:8265", "http://head:8000"),
        ("::", "http://[::1]:8265", "http://[::1]:8000"),
        ("10.0.0.1", "http://head:8265", "http://10.0.0.1:8000"),
        ("127.0.0.1", "http://head:8265", None),
    ],
)
def test_the_gateway_is_looked_for_where_it_can_be_reached(host: str, dashboard: str, expected: str | None) -> None:
    assert gateway_url(ServeView({}, HttpOptions(host)), dashboard) == expected


def test_a_cluster_without_serve_has_no_gateway() -> None:
    status = read_status(ServeView({}), DASHBOARD, answering(HealthBody("ok")), {})
    assert status.gateway is None
    assert status_text(status) == "no application is deployed at http://127.0.0.1:8265"


def test_a_copy_that_ray_has_no_place_for_is_told_whatever_the_gateway_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve = FakeServe(stages_of=lambda _config: [DEPLOYING])
    serve.nodes = [{"node_id": "a", "state": "ALIVE", "resources_total": {"CPU": 4.0}, "node_ip": "127.0.0.1"}]
    bundles = [{"unit_resources": {"CPU": 0.05}}, {"unit_resources": {"CPU": 0.1, "GPU": 1.0}, "node_id": ""}]
    serve.groups = [{"name": "SERVE_REPLICA::demo#Router#x", "state": "PENDING", "bundles": bundles}]
    with fake_dashboard(serve) as url:
        Dashboard(url).put_applications({"applications": [{"name": "demo"}]})
        assert show_status(Dashboard(url), as_json=False) == 0
    assert "demo: waits for room: a stage, whose ranks share a node, needs 1 GPU, and no" in capsys.readouterr().out


def test_json_has_what_the_table_has(capsys: pytest.CaptureFixture[str]) -> None:
    serve = FakeServe()
    with fake_dashboard(serve) as url:
        Dashboard(url).put_applications({"applications": [{"name": "demo"}]})
        assert show_status(Dashboard(url), as_json=True) == 0
        shown = json.loads(capsys.readouterr().out)
        assert show_status(Dashboard(url), as_json=False) == 0
    assert shown["applications"] == [
        {"name": "demo", "state": "DEPLOYING", "detail": "", "num_running": 0, "num_wanted": 1, "models": []}
    ]
    assert (shown["dashboard"], shown["gateway"], shown["health"]) == (url, None, "unknown")
    assert "demo         RUNNING  1 of 1\n" in capsys.readouterr().out
