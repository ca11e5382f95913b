"""What tests of a backend over real links share."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes_serve import FakeReplica


@pytest.fixture
async def replicas() -> AsyncIterator[dict[str, FakeReplica]]:
    """Replicas by name, made as they are asked for."""
    made: dict[str, FakeReplica] = {}
    yield made
    for replica in made.values():
        replica.links.close()
