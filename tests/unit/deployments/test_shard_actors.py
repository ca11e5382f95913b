"""How shards are started."""

import sys
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from serve_app.deployments.shard_actors import _told, forked_environment
from serve_app.errors import PeerLostError


def test_shards_on_cpu_are_forked_where_there_is_a_server() -> None:
    environment = forked_environment("/tmp/a b/shards", "cpu", {})
    assert environment == {
        "py_executable": f"{sys.executable} -m serve_app.deployments.shard_process '/tmp/a b/shards'"
    }


@pytest.mark.parametrize(
    ("server", "device_type", "own"),
    [(None, "cpu", {}), ("/tmp/shards", "cuda", {}), ("/tmp/shards", "cpu", {"env_vars": {"HOME": "/root"}})],
)
def test_other_shards_are_started_as_ray_starts_them(server: str | None, device_type: str, own: dict[str, Any]) -> None:
    assert forked_environment(server, device_type, own) is None


async def test_what_a_shard_raises_is_told_as_it_was() -> None:
    lost = PeerLostError("another shard of the group is gone")

    async def run(error: Exception) -> None:
        raise error

    with pytest.raises(PeerLostError) as told:
        await _told(run(RayTaskError("run", "a traceback", lost).as_instanceof_cause()))
    assert told.value is lost
    with pytest.raises(ActorDiedError):
        await _told(run(ActorDiedError()))
