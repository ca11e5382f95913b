"""Models that sleep: told apart from an outage, and woken by the calls that wait for them."""

import asyncio

import pytest

from serve_app.errors import UnavailableError
from serve_app.types.tensors import InferRequest, InferResult
from tests.fakes_serve import FakeControl, FakeReplica, add_replica, looked, running_backend, states, until


async def test_a_model_that_sleeps_is_told_apart_from_an_outage_and_woken(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    copy = add_replica(control, replicas, "one", "m")
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
    copy = add_replica(control, replicas, "one", "m")
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
    copy = add_replica(control, replicas, "one", "m")
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
        add_replica(control, replicas, "one", "m")
        await looked(backend, since_registered_s=9.0)
        assert [model.name for model in backend.models()] == ["m"]
