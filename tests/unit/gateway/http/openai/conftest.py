"""A Gateway in this process."""

from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from tests.fakes import ScriptedBackend
from tests.openai_calls import client_of


@pytest_asyncio.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client
