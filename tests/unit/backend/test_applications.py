"""What a backend knows of applications: names, health, and what replicas tell."""

import logging
from collections.abc import AsyncIterator

import pytest

from serve_app.backend.serve_backend import ServeBackend
from serve_app.types.models import ModelDescription
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


async def looked(backend: ServeBackend) -> None:
    await backend._applications.discover()
    for application in backend._applications.all:
        if application.registering is not None:
            await application.registering


async def test_models_are_known_when_the_backend_has_started(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m")
    add(control, replicas, "two", "n")
    async with running_backend(control) as backend:
        assert [model.name for model in backend.models()] == ["m", "n"]
        assert backend.model("n") == replicas["two"].description
        assert backend.model("o") is None
        await until(lambda: backend.health().is_healthy)


async def test_the_first_of_two_applications_with_one_model_name_stays(replicas: dict[str, FakeReplica]) -> None:
    control = FakeControl()
    add(control, replicas, "one", "m", created_s=5)
    async with running_backend(control) as backend:
        add(control, replicas, "two", "m", created_s=3)
        await looked(backend)
        assert backend.model("m") == replicas["one"].description
        health = backend.health()
        assert not health.is_healthy
        assert "two: its model name m is taken by another application; rename one" in health.detail
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
    control.replicas["starting", "Router"] = []
    control.statuses["starting"] = "DEPLOYING"
    add(control, replicas, "one", "m")
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"m": ["ready"], "starting": []})
        health = backend.health()
        assert not health.is_healthy
        assert health.is_discovering
        assert "starting: no copy answers; application is DEPLOYING" in health.detail


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
