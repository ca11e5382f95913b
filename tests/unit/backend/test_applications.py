"""How a backend finds applications, and what becomes of their calls when they change."""

import asyncio
import logging

import pytest

from serve_app.backend.application import GRAPH_NAME, ROUTER_NAME
from serve_app.backend.applications import MAIN_OF_BUILDER
from serve_app.backend.control import RunningApplication
from serve_app.backend.serve_backend import ServeBackend
from serve_app.errors import InternalError, ModelNotFoundError, UnavailableError
from serve_app.planning.serve_options import GRAPH_IMPORT_PATH, MODEL_IMPORT_PATH, MODEL_SET_IMPORT_PATH
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult
from tests.fakes_serve import FakeControl, FakeReplica, add_replica, looked, running_backend, states, until


async def test_models_and_their_copies_are_known_when_the_backend_has_started(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    add_replica(control, replicas, "two", "n")
    async with running_backend(control) as backend:
        assert [model.name for model in backend.models()] == ["m", "n"]
        assert backend.model("n") == replicas["two"].description
        assert backend.model("o") is None
        assert backend.health().is_healthy, "a Gateway that is ready for requests is well"


async def test_replicas_that_are_heard_are_registered_with_over_the_links_and_not_through_serve(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    first = add_replica(control, replicas, "one", "m")
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
    add_replica(control, replicas, "one", "m")
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
    replica = add_replica(control, replicas, "one", "m")
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
    add_replica(control, replicas, "one", "m", created_s=5)
    async with running_backend(control) as backend:
        add_replica(control, replicas, "two", "m", created_s=3)
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
    add_replica(control, replicas, "leaving", "m")
    control.statuses["leaving"] = "DELETING"
    async with running_backend(control) as backend:
        assert backend.models() == []
        assert backend.health().detail == "no model is deployed"


async def test_a_model_whose_files_cannot_be_had_here_is_logged_and_the_others_are_served(
    replicas: dict[str, FakeReplica], caplog: pytest.LogCaptureFixture
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "bad")
    add_replica(control, replicas, "two", "good")

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
    add_replica(control, replicas, "one", "m")
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
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        assert backend.model("m") == replicas["one"].description


async def test_calls_go_on_when_an_application_gets_another_deployment(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    replica = add_replica(control, replicas, "one", "m")
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
    old = add_replica(control, replicas, "one", "m")
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
    replica = add_replica(control, replicas, "one", "m")
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
    replica = add_replica(control, replicas, "one", "m")
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
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        control.listed["one"] = RunningApplication("RUNNING", "", deployments)
        await looked(backend)
        assert backend.models() == []
        assert [one.main for one in backend._applications.all] == [one for one in deployments if one == GRAPH_NAME]


def test_builders_are_those_of_a_serve_file() -> None:
    mains = {MODEL_IMPORT_PATH: ROUTER_NAME, MODEL_SET_IMPORT_PATH: ROUTER_NAME, GRAPH_IMPORT_PATH: GRAPH_NAME}
    assert mains == MAIN_OF_BUILDER


async def test_whoever_waits_for_a_model_shares_the_looks_and_hears_when_it_is_known(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    control.listed["new"] = RunningApplication("DEPLOYING", "", (), MODEL_IMPORT_PATH)
    async with running_backend(control) as backend:
        waiting = [asyncio.create_task(backend.wait_for_model(name, 30.0)) for name in ("m", "m", "nobody")]
        await looked(backend)
        assert not any(one.done() for one in waiting)
        del control.listed["new"]
        add_replica(control, replicas, "new", "m")
        await looked(backend, since_registered_s=9.0)
        async with asyncio.timeout(1):
            await asyncio.gather(*waiting)
        assert backend.model("m") is not None
        assert control.num_looks == 3, "one of the start, and the two of this test"


async def test_nobody_waits_for_a_model_when_none_is_on_its_way_or_longer_than_asked(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    add_replica(control, replicas, "one", "m")
    async with running_backend(control) as backend, asyncio.timeout(5):
        await backend.wait_for_model("nobody", 30.0)
        await backend.wait_for_model("m", 30.0)
        control.listed["new"] = RunningApplication("DEPLOYING", "", (), MODEL_IMPORT_PATH)
        await looked(backend)
        await backend.wait_for_model("m", 30.0)
        await backend.wait_for_model("nobody", 0.01)
        waiting = asyncio.create_task(backend.wait_for_model("nobody", 30.0))
        await asyncio.sleep(0)
        control.listed["new"] = RunningApplication("DEPLOY_FAILED", "", (), MODEL_IMPORT_PATH)
        await looked(backend)
        await waiting


async def test_serve_is_asked_for_all_unless_every_copy_that_it_listed_is_well(
    replicas: dict[str, FakeReplica],
) -> None:
    control = FakeControl()
    replica = add_replica(control, replicas, "one", "m")
    control.listed["one"] = RunningApplication("RUNNING", "", ("Router",), replicas=frozenset({"one"}))
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"]})
        await looked(backend, since_registered_s=60.0)
        await looked(backend, since_registered_s=60.0)
        await looked(backend)
        assert control.is_calm
        replica.tell(state="draining")
        await until(lambda: states(backend) == {"m": ["draining"]})
        await looked(backend)
        assert not control.is_calm, "Serve may know why"
        replica.tell(state="ready")
        await until(lambda: states(backend) == {"m": ["ready"]})
        await looked(backend)
        assert control.is_calm
        control.listed["one"] = RunningApplication("RUNNING", "", ("Router",), replicas=frozenset({"one", "two"}))
        await looked(backend)
        await looked(backend)
        assert not control.is_calm, "the second one has not been heard"
        control.listed["one"] = RunningApplication("RUNNING", "", ("Router",), asleep=("Router",), replicas=frozenset())
        await looked(backend)
        await looked(backend)
        assert control.is_calm, "it sleeps, and nobody asks for it"
