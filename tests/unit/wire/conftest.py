"""Ends of links, and whoever else there is on the network; each test runs on asyncio's loop and on the one of Ray."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
import uvloop

from serve_app.wire.control_link import ControlServer
from serve_app.wire.links import LOOPBACK, Senders, TokenReceiver
from tests.fakes_links import EPOCH, Strangers


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Descriptors are watched by other code in each."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def server() -> AsyncIterator[ControlServer]:
    server = ControlServer(LOOPBACK, EPOCH, num_shards=2)
    yield server
    server.close()


@pytest.fixture
async def receiver() -> AsyncIterator[TokenReceiver]:
    receiver = TokenReceiver(LOOPBACK)
    yield receiver
    receiver.close()


@pytest.fixture
def links() -> Iterator[Senders]:
    links = Senders(LOOPBACK)
    yield links
    links.close()


@pytest.fixture
def strangers() -> Iterator[Strangers]:
    strangers = Strangers()
    yield strangers
    strangers.close()
