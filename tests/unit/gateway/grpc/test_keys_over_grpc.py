"""The API keys of HTTP hold over gRPC."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from serve_app.protos import open_inference_pb2_grpc as services
from tests.api_keys import GuardedGateway, code_of, guarded_gateway, metadata
from tests.unit.gateway.grpc.test_open_inference import Methods, Servicer, prompt


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[GuardedGateway]:
    async with guarded_gateway(tmp_path) as gateway:
        yield gateway


async def test_the_same_keys_hold_over_grpc(guarded: GuardedGateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    methods = Methods(guarded.plane)
    methods._keys = guarded.plane.keys
    server = grpc.aio.server()
    services.add_GRPCInferenceServiceServicer_to_server(Servicer(methods), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert await code_of(stub.ModelInfer(prompt(max_tokens=3))) == "UNAUTHENTICATED"
        assert await code_of(stub.ModelInfer(prompt(max_tokens=3), metadata=metadata("nonsense"))) == "UNAUTHENTICATED"
        assert await code_of(stub.ModelInfer(prompt(max_tokens=3), metadata=metadata(guarded.keys[1]))) == "NOT_FOUND"
        assert await code_of(stub.ModelInfer(prompt(max_tokens=3), metadata=metadata(guarded.keys[0]))) == "OK"
        assert await code_of(stub.ModelInfer(prompt(max_tokens=3), metadata=metadata(guarded.keys[2]))) == "OK"
        limited = stub.ModelInfer(prompt(max_tokens=3), metadata=metadata(guarded.keys[2]))
        assert await code_of(limited) == "RESOURCE_EXHAUSTED"
        assert await code_of(stub.ModelStreamInfer(iter([prompt(max_tokens=3)]))) == "UNAUTHENTICATED"
        stream = stub.ModelStreamInfer(iter([prompt(max_tokens=3)]), metadata=metadata(guarded.keys[0]))
        assert [answer.error_message async for answer in stream]
        assert await code_of(stream) == "OK"
    await server.stop(None)
    assert not [key for key in guarded.keys if key in caplog.text]
