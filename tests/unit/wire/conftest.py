"""Ends of links, and whoever else there is on the network."""

from collections.abc import AsyncIterator, Iterator

import pytest

from serve_app.wire.control_link import ControlServer
from serve_app.wire.links import LOOPBACK, Senders, TokenReceiver
from tests.fakes_links import EPOCH, Strangers


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
