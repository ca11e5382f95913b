"""`rayshard deploy` against a stand-in for Ray's dashboard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.absolute_paths import with_absolute_paths
from serve_app.cli.clock import Clock
from serve_app.cli.deploy_command import deploy
from serve_app.cli.main import main
from serve_app.cli.ray_dashboard import Dashboard, DashboardError
from serve_app.cli.running_servers import ServerNote
from tests.unit.cli.fake_dashboard import DEPLOYING, RUNNING, Config, FakeServe, FakeTime, Stage, fake_dashboard

FILE = """
http_options: {{port: 8123}}
logging_config: {{log_level: INFO}}
applications:
- {{name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}}
- name: one
  route_prefix: null
  import_path: serve_app.app:build_model
  args: {{name: one, source: {source}}}
"""
ERROR = (
    "\x1b[31mray.exceptions.RayTaskError(ConfigError): \x1b[0mpid=1\n  File x\n{error}: source=bad is not a directory"
)
BAD = [DEPLOYING, Stage("DEPLOYING", ERROR.format(error="serve_app.errors.UnavailableError"))]


@pytest.fixture
def serve() -> FakeServe:
    return FakeServe()


@pytest.fixture
def dashboard(serve: FakeServe) -> Iterator[Dashboard]:
    with fake_dashboard(serve) as url:
        yield Dashboard(url)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, "good")


def write(directory: Path, source: str) -> Path:
    path = directory / "serve.yaml"
    path.write_text(FILE.format(source=source))
    return path


def fail_bad_sources(serve: FakeServe, stages: list[Stage]) -> None:
    """Let an application with source: bad go through these."""

    def stages_of(config: Config) -> list[Stage]:
        return stages if config.get("args", {}).get("source") == "bad" else [DEPLOYING, RUNNING]

    serve.stages_of = stages_of


def applications(content: dict[str, Any]) -> list[Any]:
    listed: list[Any] = content["applications"]
    return listed


def test_what_ray_waits_for_is_told_while_it_does_and_when_it_was_too_long(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.stages_of = lambda _config: [DEPLOYING]
    serve.nodes = [{"node_id": "a", "state": "ALIVE", "resources_total": {"CPU": 4.0}}]
    bundles = [{"unit_resources": {"CPU": 0.05}}, {"unit_resources": {"CPU": 8.0}}]
    serve.groups = [{"name": "SERVE_REPLICA::one#Router#x", "state": "PENDING", "bundles": bundles}]
    assert deploy(path, dashboard, 30, FakeTime().clock) == 1
    reason = "waits for room: a stage, whose ranks share a node, needs 8 CPUs on one node, and no node has more than 4"
    printed = capsys.readouterr()
    assert sum(line.startswith(f"one {reason}") for line in printed.out.splitlines()) == 1
    assert f"one is DEPLOYING after 30 s: {reason}" in printed.err


def test_a_file_is_submitted_and_waited_for(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(path, dashboard, 10, FakeTime().clock) == 0
    assert serve.submitted == [with_absolute_paths(path)]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "gateway DEPLOYING",
        "one DEPLOYING",
        "gateway RUNNING",
        "one RUNNING",
        f"{path}: every application runs",
    ]


@pytest.mark.parametrize(
    ("stages", "why", "waited_s"),
    [
        ([*BAD, Stage("DEPLOY_FAILED", BAD[-1].message)], "one does not start: source=bad is not a directory", 1.0),
        ([Stage("DEPLOYING", ERROR.format(error="serve_app.errors.ConfigError"))], "one does not start: source=bad", 0),
        (BAD, "one is DEPLOYING after 10 s: source=bad is not a directory", 10),
        ([], "one is not there after 10 s", 10),
    ],
)
def test_what_ran_before_comes_back_when_the_new_does_not_run(
    stages: list[Stage],
    why: str,
    waited_s: float,
    serve: FakeServe,
    dashboard: Dashboard,
    path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_bad_sources(serve, stages)
    assert deploy(path, dashboard, 10, FakeTime().clock) == 0
    time = FakeTime()
    assert deploy(write(path.parent, "bad"), dashboard, 10, time.clock) == 1
    good, bad, again = serve.submitted
    assert [applications(put)[1]["args"]["source"] for put in serve.submitted] == ["good", "bad", "good"]
    assert applications(again) == applications(good)
    assert again.keys() == {"http_options", "applications"}  # a logging_config would change what ran
    assert applications(bad) != applications(good)
    told = capsys.readouterr().err
    assert told.startswith(why)
    assert told.endswith("What ran before runs again: gateway, one.\n")
    assert time.slept_s == waited_s + 0.5


def test_a_failure_of_an_earlier_try_is_not_taken_for_one_of_this(
    serve: FakeServe, dashboard: Dashboard, path: Path
) -> None:
    failed = Stage("DEPLOY_FAILED", ERROR.format(error="serve_app.errors.ConfigError"))
    serve.stages_of = lambda _config: [failed]
    serve.submit(with_absolute_paths(write(path.parent, "bad")))
    serve.stages_of = lambda _config: [Stage("DEPLOYING", failed.message), RUNNING]  # until it has been built
    assert deploy(write(path.parent, "good"), dashboard, 10, FakeTime().clock) == 0
    assert len(serve.submitted) == 2


def test_a_first_file_that_does_not_run_is_left_for_a_look(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.stages_of = lambda _config: [Stage("DEPLOY_FAILED")]
    assert deploy(path, dashboard, 10, FakeTime().clock) == 1
    assert len(serve.submitted) == 1
    told = capsys.readouterr().err
    assert "one does not start: Failed to update the deployments ['Router'].\nNothing ran before" in told


def test_another_deployment_in_between_is_left_alone(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[None] = []

    def deploy_too() -> None:
        looks.append(None)
        if len(looks) == 3:  # before, first, second
            serve.submit(with_absolute_paths(path))

    serve.submit(with_absolute_paths(path))
    serve.stages_of = lambda _config: [DEPLOYING]
    serve.on_look = deploy_too
    assert deploy(write(path.parent, "other"), dashboard, 10, FakeTime().clock) == 1
    assert len(serve.submitted) == 3
    assert capsys.readouterr().err == "error: another deployment has come in between; it is left as it is\n"


def test_a_dashboard_that_does_not_answer_for_a_while_is_asked_again(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.answers = [200, 200, 503, 500]
    assert deploy(path, dashboard, 10, FakeTime().clock) == 0
    serve.answers = [200, 200, *([503] * 30)]
    time = FakeTime()
    assert deploy(write(path.parent, "other"), dashboard, 10, time.clock) == 1
    assert time.slept_s == 10
    assert "answers 503: Traceback\nit is why\nWhat ran before could not be put back" in capsys.readouterr().err


def test_a_file_that_serve_refuses_changes_nothing(serve: FakeServe, dashboard: Dashboard, path: Path) -> None:
    serve.answers = [200, 400]
    with pytest.raises(
        DashboardError, match=r"^Serve refuses the file, and has changed nothing: Traceback\nit is why$"
    ):
        deploy(path, dashboard, 10, FakeTime().clock)
    assert serve.submitted == []


def test_what_cannot_be_put_back_is_said(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_bad_sources(serve, [Stage("DEPLOY_FAILED")])
    serve.submit(with_absolute_paths(path))
    serve.look(), serve.look()
    serve.answers = [200, 200, 200, 200, 500]
    assert deploy(write(path.parent, "bad"), dashboard, 10, FakeTime().clock) == 1
    assert "What ran before could not be put back: Ray's dashboard at http://" in capsys.readouterr().err


def test_one_that_ran_before_has_to_run_afterwards(serve: FakeServe, dashboard: Dashboard, path: Path) -> None:
    assert deploy(path, dashboard, 10, FakeTime().clock) == 0
    serve.stages_of = lambda config: [RUNNING if config["name"] == "gateway" else Stage("DEPLOY_FAILED")]
    assert deploy(path, dashboard, 10, FakeTime().clock) == 1


def test_an_application_that_did_not_run_before_does_not_hold_up_the_others(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_bad_sources(serve, [Stage("UNHEALTHY")])
    serve.submit(with_absolute_paths(write(path.parent, "bad")))
    serve.look(), serve.look()
    path.write_text(path.read_text().replace("import_path: 'serve_app.app:build_gateway'", "import_path: 'm:x'"))
    assert deploy(path, dashboard, 10, FakeTime().clock) == 0
    assert "deployed; still not running, as before, and not changed: one\n" in capsys.readouterr().out


def test_applications_that_end_are_named(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = with_absolute_paths(path)
    serve.submit({"applications": [*content["applications"], {"name": "old"}]})
    assert deploy(path, dashboard, 10, FakeTime().clock) == 0
    assert capsys.readouterr().out.startswith(f"old is not in {path}: it ends\n")


def test_an_interrupted_wait_leaves_the_cluster_alone(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    serve.submit(with_absolute_paths(path))
    assert deploy(write(path.parent, "other"), dashboard, 10, Clock(lambda: 0.0, interrupt)) == 130
    assert len(serve.submitted) == 2
    assert "no longer waiting; the cluster goes on" in capsys.readouterr().err


def test_a_file_with_mistakes_is_not_submitted(
    serve: FakeServe, dashboard: Dashboard, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(write(path.parent, "./nowhere")), "--address", dashboard.url]) == 1
    assert "applications[one].args: source=./nowhere" in capsys.readouterr().err
    assert serve.submitted == []


def test_what_the_running_server_has_no_room_for_is_not_submitted(
    serve: FakeServe,
    dashboard: Dashboard,
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    serve.stages_of = lambda _config: [RUNNING]
    write(path.parent, "org/model")
    path.write_text(path.read_text().replace("source: org/model", "source: org/model, device: {cpus_per_shard: 5000}"))
    with ServerNote(tmp_path / "rayshard" / "running", 8123, "http://127.0.0.1:8123", path, tmp_path / "log") as note:
        note.dashboard_is_at(dashboard.url)
        assert main(["deploy", str(path)]) == 1
        assert "the applications reserve 5000.1 CPUs, and this machine has" in capsys.readouterr().err
        assert serve.submitted == []
        path.write_text(path.read_text().replace("5000", "0.01"))
        assert main(["deploy", str(path)]) == 0
    assert len(serve.submitted) == 1


def test_a_cluster_that_cannot_be_reached_is_one_sentence(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    path = write(path.parent, "org/model")
    assert main(["deploy", str(path), "--address", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == (
        "error: Ray's dashboard at http://127.0.0.1:1 cannot be reached (Connection refused); "
        "see that the cluster runs, and that this is its dashboard's address\n"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    assert main(["deploy", str(path)]) == 1
    assert capsys.readouterr().err == (
        "error: no `rayshard serve` of yours runs here on port 8123; start one, "
        "or name another cluster's dashboard: --address http://HOST:8265\n"
    )
