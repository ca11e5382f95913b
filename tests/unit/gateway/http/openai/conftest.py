"""A Gateway in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.fakes import (
    ScriptedBackend,
    save_model_dir,
)
from tests.openai_calls import client_of


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backend(model_dir: Path) -> ScriptedBackend:
    return ScriptedBackend(model_dir)


@pytest_asyncio.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client
