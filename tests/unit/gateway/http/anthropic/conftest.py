"""Anthropic's client, and a Gateway in this process."""

from collections.abc import AsyncIterator

import anthropic
import pytest
import pytest_asyncio

from tests.anthropic_calls import sdk_of
from tests.fakes import ScriptedBackend
from tests.unit.gateway.http.openai.test_tool_calls import backend_of


@pytest_asyncio.fixture
async def sdk(backend: ScriptedBackend) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with sdk_of(backend) as sdk:
        yield sdk


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tool_sdk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Of a model that takes tools and reasons; for requests that are refused."""
    async with sdk_of(backend_of(tmp_path_factory.mktemp("tools"))) as sdk:
        yield sdk
