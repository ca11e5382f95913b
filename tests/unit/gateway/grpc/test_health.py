"""grpc.health.v1, and streams of calls: who may see what, how many may be open, what each call of a stream counts.

What the calls answer is https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import QueueFullError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.open_streams import OpenStreams
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from serve_app.types.models import ModelDescription
from tests.api_keys import code_of, metadata, write_keys
from tests.fakes import ScriptedBackend, save_model_dir
from tests.unit.gateway.grpc.test_open_inference import Methods, Servicer, prompt
from tests.unit.gateway.http.test_app import until

STATUS = health_pb2.HealthCheckResponse
SERVICES = ["", "inference.GRPCInferenceService", "rayshard.v1.Rayshard"]


class HealthServicer(Servicer):
    """With Watch, which streams."""

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """A stream."""
        async for answer in self._methods.Watch(request, grpc_context=context):
            yield answer


@dataclass
class Server:
    """A server without Serve."""

    health: Any
    inference: Any
    plane: DataPlane
    backend: ScriptedBackend
    keys: list[str]

    def watch(self, service: str = "", key: str | None = None) -> Any:
        request = health_pb2.HealthCheckRequest(service=service)
        return self.health.Watch(request, metadata=metadata(key) if key else None)

    def check(self, service: str = "", key: str | None = None) -> Any:
        request = health_pb2.HealthCheckRequest(service=service)
        return self.health.Check(request, metadata=metadata(key) if key else None)


@pytest.fixture(params=[True, False], ids=["keys", "open"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    backend = ScriptedBackend(save_model_dir(tmp_path / "model"))
    path = tmp_path / "keys"
    keys = write_keys(
        path, "name=all", "name=other models=other", "name=two concurrency=2", "name=four requests_per_minute=4"
    )
    config = GatewayConfig(api_keys_file=str(path)) if request.param else GatewayConfig()
    plane = DataPlane(backend, config)
    methods = Methods(plane)
    methods._keys = plane.keys
    servicer, running = HealthServicer(methods), grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
    services.add_GRPCInferenceServiceServicer_to_server(servicer, running)  # type: ignore[no-untyped-call]
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        inference = services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        yield Server(health_pb2_grpc.HealthStub(channel), inference, plane, backend, keys if request.param else [])
    await running.stop(None)
    plane.close()


with_keys = pytest.mark.parametrize("server", [True], indirect=True)
without_keys = pytest.mark.parametrize("server", [False], indirect=True)


async def test_everything_s_health_is_for_everybody(server: Server) -> None:
    for service in SERVICES:
        assert (await server.check(service)).status == STATUS.SERVING
        watch = server.watch(service)
        assert (await watch.read()).status == STATUS.SERVING
        server.backend.is_healthy = False
        assert (await watch.read()).status == STATUS.NOT_SERVING
        server.backend.is_healthy = True
        watch.cancel()


async def test_a_server_that_drains_is_not_serving_and_refuses_calls(server: Server) -> None:
    key = server.keys[0] if server.keys else None
    told = metadata(key) if key else None
    watch = server.watch()
    assert (await watch.read()).status == STATUS.SERVING
    stream = server.inference.ModelStreamInfer(metadata=told)
    await stream.write(prompt(max_tokens=20))
    assert (await stream.read()).error_message == ""
    await until(lambda: server.backend.num_open == 0)
    server.plane.intake.close()
    assert (await watch.read()).status == STATUS.NOT_SERVING
    assert (await server.check("tiny", key)).status == STATUS.NOT_SERVING
    assert not (await server.inference.ModelReady(pb.ModelReadyRequest(name="tiny"), metadata=told)).ready
    assert await code_of(server.inference.ModelInfer(prompt(), metadata=told)) == "UNAVAILABLE"
    assert await code_of(server.inference.ModelStreamInfer(metadata=told)) == "UNAVAILABLE"
    await stream.write(prompt())
    while not (answer := await stream.read()).error_message:
        assert answer.infer_response.outputs
    assert "the server is draining" in answer.error_message
    assert server.plane.intake.num_running == 0  # neither a watch nor a stream that asks nothing is waited for
    watch.cancel()
    stream.cancel()


@without_keys
async def test_a_name_that_is_not_served_is_watched_until_it_is(server: Server) -> None:
    assert await code_of(server.check("new")) == "NOT_FOUND"
    watch = server.watch("new")
    assert (await watch.read()).status == STATUS.SERVICE_UNKNOWN
    new = ModelDescription("new", "predict", "", 64, 64, 300, [], 1, has_tokenizer=False)
    server.backend.extra_models.append(new)
    assert (await watch.read()).status == STATUS.SERVING
    server.backend.extra_models.clear()
    assert (await watch.read()).status == STATUS.SERVICE_UNKNOWN
    watch.cancel()


@with_keys
async def test_a_model_s_health_is_for_keys_that_may_see_it(server: Server) -> None:
    for service in ("tiny", "no-such"):
        assert await code_of(server.check(service)) == "UNAUTHENTICATED"
        assert await code_of(server.watch(service)) == "UNAUTHENTICATED"
    everything, other = server.keys[:2]
    assert (await server.check("tiny", everything)).status == STATUS.SERVING
    assert await code_of(server.check("tiny", other)) == "NOT_FOUND"
    for key, status in ((everything, STATUS.SERVING), (other, STATUS.SERVICE_UNKNOWN)):
        watch = server.watch("tiny", key)
        assert (await watch.read()).status == status
        watch.cancel()
    assert await code_of(server.watch("", "nonsense")) == "UNAUTHENTICATED"


async def test_list_shows_what_the_caller_may_see(server: Server) -> None:
    async def names(key: str | None = None) -> list[str]:
        answer = await server.health.List(health_pb2.HealthListRequest(), metadata=metadata(key) if key else None)
        assert {one.status for one in answer.statuses.values()} == {STATUS.SERVING}
        return sorted(answer.statuses)

    assert await names() == (SERVICES if server.keys else [*SERVICES, "tiny"])
    if server.keys:
        assert await names(server.keys[0]) == [*SERVICES, "tiny"]
        assert await names(server.keys[1]) == SERVICES
        listed = server.health.List(health_pb2.HealthListRequest(), metadata=metadata("nonsense"))
        assert await code_of(listed) == "UNAUTHENTICATED"


@without_keys
async def test_watches_are_limited_and_leave_nothing_behind(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    watches = [server.watch() for _ in range(32)]
    for watch in watches:
        await watch.read()
    assert await code_of(server.watch()) == "RESOURCE_EXHAUSTED"
    caplog.clear()
    for watch in watches:
        watch.cancel()
    await until(lambda: not server.plane.watches._num_open)
    again = server.watch()
    assert (await again.read()).status == STATUS.SERVING
    again.cancel()
    await until(lambda: not server.plane.watches._num_open)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_watch_that_is_cancelled_ends_without_an_exception(tmp_path: Path) -> None:
    class Context:
        def invocation_metadata(self) -> list[tuple[str, str]]:
            return []

        def peer(self) -> str:
            return "ipv4:127.0.0.1:5"

    plane = DataPlane(ScriptedBackend(save_model_dir(tmp_path)), GatewayConfig())

    async def watch() -> list[Any]:
        request = health_pb2.HealthCheckRequest()
        return [answer async for answer in Methods(plane).Watch(request, grpc_context=Context())]  # type: ignore[arg-type]

    task = asyncio.create_task(watch())
    await until(lambda: plane.watches._num_open.total() == 1)
    task.cancel()
    assert [answer.status for answer in await task] == [STATUS.SERVING]
    assert not plane.watches._num_open
    plane.close()


def test_streams_are_counted_for_each_caller_and_in_all() -> None:
    streams = OpenStreams(max_of_caller=2, max_in_all=3)
    with streams.held("a"), streams.held("a"):
        with pytest.raises(QueueFullError, match="2 streams of yours"), streams.held("a"):
            pass
        with streams.held("b"), pytest.raises(QueueFullError, match="3 streams are open"), streams.held("c"):
            pass
    with streams.held("a"), streams.held("c"):
        pass


# Streams of calls


async def errors_of(stream: Any) -> list[str]:
    return [answer.error_message async for answer in stream]


@with_keys
async def test_each_call_of_a_stream_counts_as_one(server: Server) -> None:
    server.backend.step_s = 0.5  # the first two run while the others come
    calls = [prompt(max_tokens=3) for _ in range(12)]
    answers = await errors_of(server.inference.ModelStreamInfer(iter(calls), metadata=metadata(server.keys[2])))
    assert sum("has 2 requests running" in error for error in answers) == 10
    answers = await errors_of(server.inference.ModelStreamInfer(iter(calls), metadata=metadata(server.keys[3])))
    assert sum("has used its requests of this minute" in error for error in answers) == 8
    assert len(server.backend.requests) == 6
    assert await code_of(server.inference.ModelStreamInfer(iter(calls[:1]))) == "UNAUTHENTICATED"


@with_keys
async def test_two_keys_in_the_metadata_are_refused(server: Server) -> None:
    both = [*metadata(server.keys[1]), *metadata(server.keys[0])]
    assert await code_of(server.inference.ModelInfer(prompt(max_tokens=3), metadata=both)) == "UNAUTHENTICATED"
    assert await code_of(server.inference.ModelStreamInfer(iter([]), metadata=both)) == "UNAUTHENTICATED"
    assert await code_of(server.health.Check(health_pb2.HealthCheckRequest(), metadata=both)) == "OK"
    assert not server.backend.requests
