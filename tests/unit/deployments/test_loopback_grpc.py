"""Serve's gRPC servers listen where its HTTP servers do."""

import asyncio
import socket

import pytest
from ray.serve._private import default_impl
from ray.serve._private.grpc_util import start_grpc_server
from ray.serve.config import gRPCOptions

from serve_app.deployments.loopback_grpc import listen_on_loopback


@pytest.mark.parametrize("is_hooked", [False, True])
def test_only_this_machine_reaches_a_server_that_serve_starts(is_hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)  # put back afterwards
    if is_hooked:
        listen_on_loopback()
    assert asyncio.run(reachable_hosts()) == (["127.0.0.1"] if is_hooked else ["127.0.0.1", "127.0.0.2"])


async def reachable_hosts() -> list[str]:
    """Hosts at which a server of Serve's answers; what listens on every interface does so at 127.0.0.2."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    task, server = await start_grpc_server(
        lambda **_: None, gRPCOptions(port=port), event_loop=asyncio.get_running_loop()
    )
    reached = []
    for host in ("127.0.0.1", "127.0.0.2"):
        with socket.socket() as client:
            client.settimeout(5)
            if client.connect_ex((host, port)) == 0:
                reached.append(host)
    await server.stop(None)
    await task
    return reached
