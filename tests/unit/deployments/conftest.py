"""Replicas of a generator, and a backend that knows one."""

from collections.abc import AsyncIterator, Callable

import pytest

from serve_app.backend.serve_backend import ServeBackend
from tests.generator_replica import Generator, backend_of, made_generators


@pytest.fixture
async def generators() -> AsyncIterator[Callable[..., Generator]]:
    """Makes replicas, and ends them."""
    async with made_generators() as make:
        yield make


@pytest.fixture
async def served(generators: Callable[..., Generator]) -> AsyncIterator[tuple[Generator, ServeBackend]]:
    """A replica that is ready, and a backend that knows it."""
    generator = generators()
    await generator.replica.start()
    async with backend_of(generator) as backend:
        yield generator, backend
