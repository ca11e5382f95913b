"""What a backend knows of applications: names, health, and what replicas tell."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest

from serve_app.backend import applications
from serve_app.backend.application import GRAPH_NAME, ROUTER_NAME, Application
from serve_app.backend.applications import MAIN_OF_BUILDER
from serve_app.backend.control import RunningApplication
from serve_app.backend.protocol import Newcomer
from serve_app.backend.serve_backend import ServeBackend
from serve_app.errors import InternalError, ModelNotFoundError, UnavailableError
from serve_app.planning.serve_options import GRAPH_IMPORT_PATH, MODEL_IMPORT_PATH, MODEL_SET_IMPORT_PATH
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult
from tests.fakes_serve import FakeControl, FakeReplica, running_backend, states, until


@pytest.fixture
async def replicas() -> AsyncIterator[dict[str, FakeReplica]]:
    """Replicas by name, made as they are asked for."""
    made: dict[str, FakeReplica] = {}
    yield made
    for replica in made.values():
        replica.links.close()


def add(
    control: FakeControl, made: dict[str, FakeReplica], application: str, model: str, created_s: int = 1
) -> FakeReplica:
    replica = made[application] = FakeReplica(application, application, model, created_s)
    control.add(application, "Router", replica)
    return replica


async def looked(backend: ServeBackend, since_registered_s: float = 0.0) -> None:
    for application in backend._applications.all:
        application.registered_s = time.monotonic() - since_registered_s
    await backend._applications.discover()
    for application in backend._applications.all:
        if application.registering is not None:
            await application.registering


async def test_models_and_their_copies_are_known_when_the_backend_has_started(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m")
    add(control, replicas, "two", "n")
    async with running_backend(control) as backend:
        assert [model.name for model in backend.models()] == ["m", "n"]
        assert backend.model("n") == replicas["two"].description
        assert backend.model("o") is None
        assert backend.health().is_healthy, "a Gateway that is ready for requests is well"


async def test_replicas_that_are_heard_are_registered_with_over_the_links_and_not_through_serve(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    first = add(control, replicas, "one", "m")
    control.listed["one"] = RunningApplication("RUNNING", "", ("Router",), replicas=frozenset({"one"}))
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        for _ in range(4):
            await looked(backend, since_registered_s=9.0)
        assert control.registered == [("one", "Router")] * 2, "once more for what was leaving, and then never"
        ((registered_s, _address),) = first.links._gateways.values()
        backend._applications._renewed_s -= 10.0
        backend._applications.renew()
        await until(lambda: next(iter(first.links._gateways.values()))[0] > registered_s)
        assert control.registered == [("one", "Router")] * 2

        second = replicas["second"] = FakeReplica("second", "one", "m")
        control.add("one", "Router", second)
        control.listed["one"] = RunningApplication("RUNNING", "", ("Router",), replicas=frozenset({"one", "second"}))
        await looked(backend, since_registered_s=9.0)
        await until(lambda: states(backend) == {"m": ["ready", "ready"]})
        for _ in range(3):
            await looked(backend, since_registered_s=9.0)
        assert control.registered == [("one", "Router")] * 4


async def test_a_replica_that_serve_lists_and_that_is_not_heard_is_looked_for_again_and_again(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m")
    control.listed["one"] = RunningApplication("RUNNING", "", ("Router",), replicas=frozenset({"one", "silent"}))
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        for _ in range(4):
            await looked(backend, since_registered_s=9.0)
        assert control.registered == [("one", "Router")] * 5


async def test_replicas_go_on_telling_their_state_while_serve_does_not_answer(
    replicas: dict[str, FakeReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (("applications", "_RENEW_INTERVAL_S"), ("serve_backend", "_SWEEP_INTERVAL_S")):
        monkeypatch.setattr(f"serve_app.backend.{module}.{name}", 0.02)
    control = FakeControl()
    replica = add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)

        async def hang(**_asked: bool) -> dict[str, RunningApplication]:
            await asyncio.Event().wait()
            return {}

        control.applications = hang  # type: ignore[method-assign]
        backend.start()
        (registered_s, _address) = next(iter(replica.links._gateways.values()))
        await until(lambda: next(iter(replica.links._gateways.values()))[0] > registered_s + 0.05)
        replica.tell(state="ready")
        assert backend.health().is_healthy


async def test_the_first_of_two_applications_with_one_model_name_stays(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m", created_s=5)
    async with running_backend(control) as backend:
        add(control, replicas, "two", "m", created_s=3)
        await looked(backend)
        assert backend.model("m") == replicas["one"].description
        taken = "two: its model name m is taken by another application; rename one"
        await until(lambda: taken in backend.health().detail)
        assert not backend.health().is_healthy
        del control.replicas["one", "Router"]
        await looked(backend)
        assert backend.model("m") == replicas["two"].description


async def test_what_is_not_ours_or_is_being_deleted_is_no_model(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    control.replicas["gateway", "Gateway"] = []
    add(control, replicas, "leaving", "m")
    control.statuses["leaving"] = "DELETING"
    async with running_backend(control) as backend:
        assert backend.models() == []
        assert backend.health().detail == "no model is deployed"


async def test_an_application_that_nobody_answers_for_is_ill_and_names_its_status(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    control.replicas["silent", "Router"] = []
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"], "silent": []})
        health = backend.health()
        assert not health.is_healthy
        assert health.is_discovering
        assert health.detail == "silent: no copy answers; application is RUNNING"


async def test_a_copy_that_is_rebuilt_says_why(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        replicas["one"].tell(state="rebuilding", detail="shard 1 has been silent for 4.0 s")
        await until(lambda: not backend.health().is_healthy)
        assert backend.health().detail == "m: rebuilding (shard 1 has been silent for 4.0 s)"


async def test_a_copy_that_is_gone_is_not_shown(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"]})
        replicas["one"].tell(state="gone")
        await until(lambda: states(backend) == {"m": []})


async def test_a_model_whose_files_cannot_be_had_here_is_logged_and_the_others_are_served(
    replicas: dict[str, FakeReplica], caplog: pytest.LogCaptureFixture
) -> None:
    control = FakeControl()
    add(control, replicas, "one", "bad")
    add(control, replicas, "two", "good")

    def place(description: ModelDescription) -> ModelDescription:
        if description.name == "bad":
            raise OSError("the disk is full")
        return description

    backend = ServeBackend(control, place)
    with caplog.at_level(logging.ERROR):
        await backend.find_running_models()
    assert [model.name for model in backend.models()] == ["good"]
    assert "model not usable application=one" in caplog.text
    backend.close()


def infer(backend: ServeBackend, wait_s: float = 5.0) -> "asyncio.Task[InferResult]":
    """A call that is under way."""
    return asyncio.create_task(backend.infer(InferRequest("r", "m", [], wait_s)))


@pytest.mark.parametrize("status", ["DEPLOYING", "DEPLOY_FAILED"])
async def test_a_model_is_served_while_serve_lists_none_of_its_deployments(
    replicas: dict[str, FakeReplica], status: str
) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        control.listed["one"] = RunningApplication(status, "max_model_lenn is unknown", ())
        del control.registered[:]
        await looked(backend, since_registered_s=6)
        assert control.registered == [("one", "Router")]
        await until(lambda: states(backend) == {"m": ["ready"]})
        assert await infer(backend) == InferResult([])
        assert backend.health().is_healthy
        assert ("max_model_lenn is unknown" in backend.health().detail) == (status == "DEPLOY_FAILED")


async def test_a_backend_that_starts_after_a_failed_deploy_knows_what_runs(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl(statuses={"one": "DEPLOY_FAILED"})
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        assert backend.model("m") == replicas["one"].description


async def test_calls_go_on_when_an_application_gets_another_deployment(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    replica = add(control, replicas, "one", "m")
    replica.may_answer.clear()
    async with running_backend(control) as backend:
        call = infer(backend)
        await until(lambda: replica.taken)
        calls = backend._calls("m", "Router")
        control.listed["one"] = RunningApplication("RUNNING", "", ("Preprocessor", "Router"))
        await looked(backend)
        assert backend._calls("m", "Router") is calls
        assert backend._calls("m", "Preprocessor") is not calls
        assert states(backend) == {"m": ["ready"]}
        del control.listed["one"]
        await looked(backend)
        with pytest.raises(InternalError, match="has no Preprocessor"):
            backend._calls("m", "Preprocessor")
        replica.may_answer.set()
        await call


@pytest.mark.parametrize("status", ["DEPLOYING", "UNHEALTHY"])
async def test_a_call_waits_while_the_only_copy_is_replaced(replicas: dict[str, FakeReplica], status: str) -> None:
    control = FakeControl()
    old = add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        old.tell(state="gone")
        await until(lambda: states(backend) == {"m": []})
        control.replicas["one", "Router"] = []
        control.statuses["one"] = status
        await looked(backend)
        assert not backend.health().is_healthy  # an outage, not a newcomer
        with pytest.raises(UnavailableError, match=r"within 0\.05 s"):
            await infer(backend, wait_s=0.05)
        call = infer(backend)
        await until(lambda: backend._calls("m", "Router").num_calls)
        new = replicas["new"] = FakeReplica("new", "one", created_s=2)
        control.add("one", "Router", new)
        await looked(backend, since_registered_s=2)  # sooner than with a model that is settled
        await call
        assert new.taken == ["r"]
        assert backend.model("m") == new.description


async def test_a_model_that_is_deleted_ends_the_calls_that_it_has(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    replica = add(control, replicas, "one", "m")
    replica.may_answer.clear()
    async with running_backend(control) as backend:
        calls = [infer(backend), infer(backend)]
        await until(lambda: len(replica.taken) == 2)
        control.statuses["one"] = "DELETING"
        await looked(backend)
        with pytest.raises(ModelNotFoundError):
            await infer(backend)
        replica.may_answer.set()
        await asyncio.gather(*calls)
        await looked(backend)
        assert backend._applications.all == []


async def test_a_call_hears_of_its_copys_death_when_its_model_has_been_deleted(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    replica = add(control, replicas, "one", "m")
    replica.may_answer.clear()
    async with running_backend(control) as backend:
        call = infer(backend, wait_s=0.05)
        await until(lambda: replica.taken)
        control.statuses["one"] = "DELETING"
        await looked(backend)
        replica.tell(state="gone")
        async with asyncio.timeout(5):
            with pytest.raises(UnavailableError, match="no copy of the model was ready"):
                await call


@pytest.mark.parametrize("deployments", [("Graph",), ("Other",)])
async def test_a_name_that_another_kind_of_application_takes_is_a_new_one(
    replicas: dict[str, FakeReplica], deployments: tuple[str, ...]
) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        control.listed["one"] = RunningApplication("RUNNING", "", deployments)
        await looked(backend)
        assert backend.models() == []
        assert [one.main for one in backend._applications.all] == [one for one in deployments if one == GRAPH_NAME]


async def test_what_ray_has_no_place_for_is_told_until_it_has(
    replicas: dict[str, FakeReplica], caplog: pytest.LogCaptureFixture
) -> None:
    reason = "waits for room: a stage needs 8 GPUs on one node, and no node has more than 4"
    control = FakeControl(rooms={"one": reason})
    control.listed["new"] = RunningApplication("DEPLOYING", "", ("Router",), MODEL_IMPORT_PATH, room=reason)
    replica = add(control, replicas, "one", "m")
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
        replica = add(control, replicas, "one", "m")
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
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        new = add(control, replicas, "two", "n")
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
    add(control, replicas, "one", "m")
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
    add(control, replicas, "one", "m")
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
    add(control, replicas, "one", "m")
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
    add(control, replicas, "one", "m")
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
    add(control, replicas, "one", "m")
    leaving = add(control, replicas, "two", "n")
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
    leaving = add(control, replicas, "one", "m")
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
    leaving = add(control, replicas, "one", "m")
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
    add(control, replicas, "one", "m")
    control.listed["new"] = RunningApplication("DEPLOY_FAILED", "x" * 9999 + "why", (), MODEL_SET_IMPORT_PATH)
    control.listed["theirs"] = RunningApplication("DEPLOY_FAILED", "", (), "shop:build")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        health = backend.health()
        assert health.newcomers.keys() == {"new"}
        assert (health.newcomers["new"].state, health.newcomers["new"].detail[-4:]) == ("failed", "xwhy")
        assert len(health.newcomers["new"].detail) == 500
        assert not health.is_discovering  # nothing is on its way


async def test_a_model_that_sleeps_is_told_apart_from_an_outage_and_woken(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    copy = add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        control.asleep.add("one")
        control.replicas["one", "Router"] = []
        copy.tell(state="gone")
        await until(lambda: states(backend) == {"m": []})
        await looked(backend)
        health = backend.health()
        assert (health.is_healthy, health.asleep, health.detail) == (True, ["m"], "m: asleep")
        assert control.held == [], "nobody has asked"
        call = asyncio.create_task(backend.infer(InferRequest("r", "m", [], 0.05)))
        await until(lambda: control.held == [("one", "Router")])
        control.asleep.clear()
        await looked(backend)
        assert backend.health().detail == "m: waking"
        await asyncio.sleep(0.1)
        assert not call.done(), "a queue's time is not a start's"
        control.add("one", "Router", copy)
        copy.tell(state="ready")
        await looked(backend, since_registered_s=9.0)
        assert await call == InferResult([])
        assert (backend.health().asleep, backend.health().detail) == ([], "")


async def test_a_call_that_waits_when_the_model_falls_asleep_waits_for_its_start(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    copy = add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        copy.tell(state="gone")
        await until(lambda: states(backend) == {"m": []})
        call = asyncio.create_task(backend.infer(InferRequest("r", "m", [], 0.3)))
        await asyncio.sleep(0)
        control.asleep.add("one")
        await looked(backend)
        await asyncio.sleep(0.4)
        assert not call.done()
        control.asleep.clear()
        control.statuses["one"] = "UNHEALTHY"  # the start has failed: it is an outage after all
        await looked(backend)
        with pytest.raises(UnavailableError, match=r"no copy of the model was ready within 0\.3 s"):
            await call
        assert not backend.health().is_healthy


async def test_a_call_waits_for_the_start_though_nobody_has_seen_the_model_asleep(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    copy = add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        copy.tell(state="gone")
        await until(lambda: states(backend) == {"m": []})
        call = asyncio.create_task(backend.infer(InferRequest("r", "m", [], 0.3)))
        await asyncio.sleep(0)
        control.waking.add("one")
        await looked(backend)
        assert backend.health().detail == "m: waking"
        await asyncio.sleep(0.4)
        assert not call.done()
        copy.tell(state="ready")
        assert await call == InferResult([])
        copy.tell(state="gone")
        control.statuses["one"] = "UNHEALTHY"
        await until(lambda: states(backend) == {"m": []})
        await looked(backend)
        assert not backend.health().is_healthy, "it is no sleep where its start fails"


async def test_a_model_that_sleeps_and_has_never_been_seen_is_woken_to_be_known(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    control.replicas["one", "Router"] = []
    control.asleep.add("one")
    async with running_backend(control) as backend:
        assert control.registered == [], "there is nobody to answer"
        assert (backend.health().is_healthy, backend.health().is_discovering) == (True, True)
        await until(lambda: control.held == [("one", "Router")])
        control.asleep.clear()
        add(control, replicas, "one", "m")
        await looked(backend, since_registered_s=9.0)
        assert [model.name for model in backend.models()] == ["m"]


def test_of_a_traceback_the_error_itself_is_the_reason() -> None:
    frames = '  File "app.py", line 1, in build\n    read()\n    ^^^^^^\n  File "m.py", line 2, in read\n    raise'
    end = "ValidationError: 1 error\nmax_model_lenn\n  Is not known"
    message = f"failed with exception:\nTraceback:\n{frames}\n{end}\n"
    assert Application("m", ROUTER_NAME, message=message).reason == end
    assert Application("m", ROUTER_NAME, message="Failed to update.").reason == "Failed to update."


def test_builders_are_those_of_a_serve_file() -> None:
    mains = {MODEL_IMPORT_PATH: ROUTER_NAME, MODEL_SET_IMPORT_PATH: ROUTER_NAME, GRAPH_IMPORT_PATH: GRAPH_NAME}
    assert mains == MAIN_OF_BUILDER
