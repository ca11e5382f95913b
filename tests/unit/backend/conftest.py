"""What tests of a backend over real links share."""

from collections.abc import AsyncIterator, Callable

import pytest

from tests.fakes_serve import FakeReplica
from tests.generator_replica import Generator, made_generators


@pytest.fixture
async def replicas() -> AsyncIterator[dict[str, FakeReplica]]:
    """Replicas by name, made as they are asked for."""
    made: dict[str, FakeReplica] = {}
    yield made
    for replica in made.values():
        replica.links.close()


@pytest.fixture
async def generators() -> AsyncIterator[Callable[..., Generator]]:
    """Makes replicas, and ends them."""
    async with made_generators() as make:
        yield make
