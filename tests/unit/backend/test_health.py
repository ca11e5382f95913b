"""What a backend tells of applications: which are well, which are ill and why, and which have not run yet."""

import asyncio
import time

import pytest

from serve_app.backend import applications
from serve_app.backend.application import ROUTER_NAME, Application
from serve_app.backend.control import RunningApplication
from serve_app.backend.protocol import Newcomer
from serve_app.planning.serve_options import MODEL_IMPORT_PATH, MODEL_SET_IMPORT_PATH
from tests.fakes_serve import FakeControl, FakeReplica, add_replica, looked, running_backend, states, until


async def test_an_application_that_nobody_answers_for_is_ill_and_names_its_status(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    control.replicas["silent", "Router"] = []
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"], "silent": []})
        health = backend.health()
        assert not health.is_healthy
        assert health.is_discovering
        assert health.detail == "silent: no copy answers; application is RUNNING"


async def test_a_copy_that_is_rebuilt_says_why(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        replicas["one"].tell(state="rebuilding", detail="shard 1 has been silent for 4.0 s")
        await until(lambda: not backend.health().is_healthy)
        assert backend.health().detail == "m: rebuilding (shard 1 has been silent for 4.0 s)"


async def test_a_copy_that_is_gone_is_not_shown(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"]})
        replicas["one"].tell(state="gone")
        await until(lambda: states(backend) == {"m": []})


async def test_what_ray_has_no_place_for_is_told_until_it_has(
    replicas: dict[str, FakeReplica], caplog: pytest.LogCaptureFixture
) -> None:
    reason = "waits for room: a stage needs 8 GPUs on one node, and no node has more than 4"
    control = FakeControl(rooms={"one": reason})
    control.listed["new"] = RunningApplication("DEPLOYING", "", ("Router",), MODEL_IMPORT_PATH, room=reason)
    replica = add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"]})
        health = backend.health()
        assert health.is_healthy, "a copy more is wanted, and one answers"
        assert health.newcomers == {"new": Newcomer("waiting", reason)}
        assert health.detail == f"one: {reason}; new: waiting ({reason})"
        assert not control.is_repairing
        replica.tell(state="rebuilding", detail="shard 1 is gone")
        await until(lambda: not backend.health().is_healthy)
        await looked(backend)
        assert control.is_repairing
        assert backend.health().detail == f"m: rebuilding (shard 1 is gone), {reason}; new: waiting ({reason})"
        control.rooms.clear()
        await looked(backend)
        assert backend.health().detail == f"m: rebuilding (shard 1 is gone); new: waiting ({reason})"
    told = [record.getMessage() for record in caplog.records if "room" in record.getMessage()]
    assert sorted(told) == sorted(
        [f"application=one {reason}", f"application=new {reason}", "application=one has found room"]
    )


@pytest.mark.parametrize("deployments", [(), ("Router",)])  # while it is built, and then
async def test_health_tells_a_newcomers_start_apart_from_an_outage(
    replicas: dict[str, FakeReplica], deployments: tuple[str, ...]
) -> None:
    control = FakeControl()
    control.listed["new"] = RunningApplication("DEPLOYING", "", deployments, MODEL_IMPORT_PATH)
    async with running_backend(control) as backend:
        health = backend.health()
        assert (health.is_healthy, health.detail) == (False, "new: starting")  # nothing has ever been ready
        replica = add_replica(control, replicas, "one", "m")
        await looked(backend)
        await until(lambda: states(backend) == {"m": ["ready"]})
        health = backend.health()
        assert (health.is_healthy, health.is_discovering) == (True, True)
        assert health.newcomers == {"new": Newcomer("starting", "")}
        replica.tell(state="rebuilding", detail="shard 1 is gone")
        await until(lambda: not backend.health().is_healthy)
        assert backend.health().detail == "m: rebuilding (shard 1 is gone); new: starting"


async def test_a_newcomer_whose_first_state_is_on_its_way_is_no_outage(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        new = add_replica(control, replicas, "two", "n")
        new.links.register = lambda _address: None  # type: ignore[assignment]  # its link is being connected
        await looked(backend)
        assert backend.model("n") == new.description
        health = backend.health()
        assert health.is_healthy
        assert health.newcomers == {"two": Newcomer("starting", "")}
        next(one for one in backend._applications.all if one.name == "two").described_s -= 10.0
        assert backend.health().detail == "n: no copy answers; application is RUNNING"


async def test_a_newcomer_that_runs_and_has_not_described_its_model_yet_is_no_outage(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    control.listed["new"] = RunningApplication("DEPLOYING", "", ("Router",), MODEL_IMPORT_PATH)
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        control.listed["new"] = RunningApplication("RUNNING", "", ("Router",), MODEL_IMPORT_PATH)  # nobody answers yet
        await looked(backend)
        health = backend.health()
        assert (health.is_healthy, health.detail) == (True, "new: starting")
        assert health.newcomers == {"new": Newcomer("starting", "")}
        application = next(one for one in backend._applications.all if one.name == "new")
        assert application.deployed_s is not None
        application.deployed_s -= 10.0
        assert backend.health().detail == "new: no copy answers; application is RUNNING"


async def test_a_pause_of_this_process_is_no_outage(
    replicas: dict[str, FakeReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        assert backend.health().is_healthy
        monkeypatch.setattr("serve_app.backend.application.FRESH_S", 0.8)
        replicas["one"].stand_still()
        stand_still(1.2)
        for _ in range(3):  # the turns that a request has taken before it is answered
            await asyncio.sleep(0)
        assert backend.health().is_healthy
        await until(lambda: not backend.health().is_healthy)  # it is silent though


def stand_still(stall_s: float) -> None:
    """This process does not run."""
    time.sleep(stall_s)


@pytest.mark.parametrize("status", [None, "DEPLOY_FAILED"])
async def test_a_newcomer_that_was_deployed_between_two_looks_is_no_outage(
    replicas: dict[str, FakeReplica], status: str | None
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    if status is not None:
        control.listed["new"] = RunningApplication(status, "", ("Router",), MODEL_IMPORT_PATH)
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        control.listed["new"] = RunningApplication("RUNNING", "", ("Router",), MODEL_IMPORT_PATH)  # nobody answers yet
        await looked(backend)
        assert (backend.health().is_healthy, backend.health().detail) == (True, "new: starting")


async def test_a_model_that_does_not_answer_a_backend_that_has_just_started_is_an_outage(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    control.listed["other"] = RunningApplication("RUNNING", "", ("Router",), MODEL_IMPORT_PATH)
    async with running_backend(control) as backend:
        await until(lambda: states(backend)["m"] == ["ready"])
        assert backend.health().detail == "other: no copy answers; application is RUNNING"


@pytest.mark.parametrize("word", ["draining", "gone"])
@pytest.mark.parametrize("status", ["DELETING", "asleep"])
async def test_a_last_copy_that_leaves_is_no_outage_before_serve_has_said_why(
    replicas: dict[str, FakeReplica], word: str, status: str
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    leaving = add_replica(control, replicas, "two", "n")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"], "n": ["ready"]})
        leaving.tell(state=word)
        await until(lambda: "ready" not in states(backend)["n"])
        assert backend.health().is_healthy
        if status == "asleep":
            control.asleep.add("two")
        else:
            control.statuses["two"] = status
        await looked(backend)
        assert backend.health().is_healthy
        assert backend.health().asleep == (["n"] if status == "asleep" else [])


async def test_a_last_copy_that_leaves_has_serve_asked_at_once_and_is_an_outage_if_it_is_not_deleted(
    replicas: dict[str, FakeReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("_SETTLED_INTERVAL_S", "_DISCOVERY_INTERVAL_S"):
        monkeypatch.setattr(applications, interval, 1000.0)  # until the next look, if nobody is in a hurry
    control = FakeControl()
    leaving = add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        (application,) = backend._applications.all
        found_s = application.looked_s
        backend.start()
        await until(lambda: application.looked_s > found_s)
        leaving.tell(state="gone")
        await until(lambda: not backend.health().is_healthy)
        assert application.left_s is not None
        assert application.looked_s > application.left_s
        assert backend.health().detail == "m: no copy answers; application is RUNNING"


async def test_a_last_copy_that_leaves_is_an_outage_when_serve_does_not_say_why(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    leaving = add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"]})
        leaving.tell(state="gone")
        await until(lambda: states(backend) == {"m": []})
        assert backend.health().is_healthy
        (application,) = backend._applications.all
        assert application.left_s is not None
        application.left_s -= 5.0
        application.looked_s = application.left_s
        assert not backend.health().is_healthy


async def test_a_newcomer_that_cannot_be_deployed_is_listed_with_serves_message(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    control.listed["new"] = RunningApplication("DEPLOY_FAILED", "x" * 9999 + "why", (), MODEL_SET_IMPORT_PATH)
    control.listed["theirs"] = RunningApplication("DEPLOY_FAILED", "", (), "shop:build")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        health = backend.health()
        assert health.newcomers.keys() == {"new"}
        assert (health.newcomers["new"].state, health.newcomers["new"].detail[-4:]) == ("failed", "xwhy")
        assert len(health.newcomers["new"].detail) == 500
        assert not health.is_discovering  # nothing is on its way


def test_of_a_traceback_the_error_itself_is_the_reason() -> None:
    frames = '  File "app.py", line 1, in build\n    read()\n    ^^^^^^\n  File "m.py", line 2, in read\n    raise'
    end = "ValidationError: 1 error\nmax_model_lenn\n  Is not known"
    message = f"failed with exception:\nTraceback:\n{frames}\n{end}\n"
    assert Application("m", ROUTER_NAME, message=message).reason == end
    assert Application("m", ROUTER_NAME, message="Failed to update.").reason == "Failed to update."
