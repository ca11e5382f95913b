"""The Open Inference Protocol over a real gRPC server, without Serve: what is taken, what is refused and how."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import QueueFullError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference import OpenInference
from serve_app.gateway.calls.open_inference_tensors import DTYPE_OF
from serve_app.gateway.grpc.methods import GrpcMethods
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import open_inference_pb2_grpc as services
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item, TensorSpec
from tests.fakes import ScriptedBackend, save_model_dir
from tests.unit.gateway.http.test_app import until


class Methods(GrpcMethods):
    """The methods as Serve calls them."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._open_inference = OpenInference(plane)
        self._time_limit_s = plane.config.request_timeout_s


class Servicer:
    """Hands grpcio's context on under the name that Serve uses."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._methods, name)

        async def run(request: Any, context: Any) -> Any:
            takes_context = "grpc_context" in inspect.signature(method).parameters
            return await (method(request, grpc_context=context) if takes_context else method(request))

        return run

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """A stream."""
        async for answer in self._methods.ModelStreamInfer(requests, grpc_context=context):
            yield answer


def again(item: Item) -> Item:
    """What a module gets."""
    return {f"{name}_again": tensor for name, tensor in item.items()}


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    directory = save_model_dir(tmp_path)
    backend = ScriptedBackend(directory, infer_script=again, step_s=0.002)
    for name, dtype in DTYPE_OF.items():
        spec = TensorSpec(dtype, ("batch", 2))
        model = ModelDescription(f"of_{name}", "predict", str(directory), 64, 64, 300, [], 1, has_tokenizer=False)
        model.inputs["x"] = spec
        model.outputs["x_again"] = spec
        backend.extra_models.append(model)
    return backend


@pytest.fixture
async def stub(backend: ScriptedBackend) -> AsyncIterator[Any]:
    plane = DataPlane(backend, GatewayConfig(max_request_bytes=2**20))
    server = grpc.aio.server()
    services.add_GRPCInferenceServiceServicer_to_server(Servicer(Methods(plane)), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield services.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    await server.stop(None)
    plane.close()


def call(model: str, name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1, 2), **more: Any) -> Any:
    request = pb.ModelInferRequest(model_name=model, id="7", **more)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def prompt(text: str = "hello", **parameters: int) -> Any:
    request = call("tiny", "text_input", "BYTES", (1,))
    request.inputs[0].contents.bytes_contents.append(text.encode())
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


async def refused(stub: Any, request: Any, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request, **options)
    error: grpc.aio.AioRpcError = caught.value
    return error


FIELDS = {"BOOL": "bool", "FP32": "fp32", "FP64": "fp64", "INT64": "int64", "UINT64": "uint64"}
FIELDS |= dict.fromkeys(("INT8", "INT16", "INT32"), "int") | dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint")


@pytest.mark.parametrize(("datatype", "field"), FIELDS.items())
async def test_typed_contents_come_back_as_raw_ones(stub: Any, datatype: str, field: str) -> None:
    request = call(f"of_{datatype}", datatype=datatype)
    getattr(request.inputs[0].contents, f"{field}_contents").extend([1, 0])
    answer = await stub.ModelInfer(request)
    expected = np.array([1, 0], dtype=DTYPE_OF[datatype]).tobytes()
    assert (answer.id, answer.model_version, list(answer.raw_output_contents)) == ("7", "1", [expected])
    again = call(f"of_{datatype}", datatype=datatype, raw_input_contents=[expected])
    assert (await stub.ModelInfer(again)).raw_output_contents == answer.raw_output_contents


async def test_large_integers_come_back_whole(stub: Any) -> None:
    request = call("of_UINT64", datatype="UINT64")
    request.inputs[0].contents.uint64_contents.extend([1, 2**64 - 1])
    raw = (await stub.ModelInfer(request)).raw_output_contents[0]
    assert np.frombuffer(raw, np.uint64).tolist() == [1, 2**64 - 1]


async def test_tritons_additions_are_as_its_own_client_reads_them(stub: Any) -> None:
    request = call("of_FP32", raw_input_contents=[bytes(8)])
    await stub.ModelInfer(request)
    config = await stub.ModelConfig(pb.ModelConfigRequest(name="of_FP32"))
    stats = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="of_FP32"))
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    read = """if True:
        import sys
        from tritonclient.grpc import service_pb2 as pb
        config, stats, index = (bytes.fromhex(one) for one in sys.argv[1:])
        config = pb.ModelConfigResponse.FromString(config).config
        print(config.name, config.backend, config.input[0].data_type, list(config.output[0].dims))
        stats = pb.ModelStatisticsResponse.FromString(stats).model_stats[0]
        print(stats.name, stats.version, stats.inference_count, stats.inference_stats.success.count)
        models = pb.RepositoryIndexResponse.FromString(index).models
        print(sorted(one.name for one in models)[-1], models[0].version, models[0].state)
    """  # both descriptions of the protocol do not fit into one process
    arguments = [one.SerializeToString().hex() for one in (config, stats, index)]
    command = [sys.executable, "-c", read, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    shown = done.stdout
    assert shown.splitlines() == ["of_FP32 rayshard 11 [-1, 2]", "of_FP32 1 1 1", "tiny 1 READY"]


async def test_classes_and_shared_memory_over_grpc(stub: Any) -> None:
    request = call("of_FP32", raw_input_contents=[np.array([1, 2], np.float32).tobytes()])
    output = request.outputs.add(name="x_again")
    output.parameters["classification"].int64_param = 1
    answer = await stub.ModelInfer(request)
    assert (answer.outputs[0].datatype, answer.outputs[0].shape) == ("BYTES", [1, 1])
    assert answer.raw_output_contents[0][4:] == b"2.000000:1"
    output.parameters["shared_memory_region"].string_param = "r"
    assert "shared memory" in (await refused(stub, request)).details()


def hostile() -> list[tuple[Any, str, str]]:
    invalid = "INVALID_ARGUMENT"
    wrong_field = call("of_FP32")
    wrong_field.inputs[0].contents.fp64_contents.extend([1, 2])
    out_of_range = call("of_INT8", datatype="INT8")
    out_of_range.inputs[0].contents.int_contents.extend([1, 200])
    half = call("of_FP16", datatype="FP16")
    half.inputs[0].contents.fp32_contents.extend([1, 2])
    no_value = call("of_FP32", raw_input_contents=[b"12345678"])
    no_value.parameters["x"].SetInParent()
    not_bool = call("of_BOOL", datatype="BOOL", raw_input_contents=[b"\x01\x02"])
    nan = call("of_FP32", raw_input_contents=[np.array([1, np.nan], np.float32).tobytes()])
    lying = call("tiny", "text_input", "BYTES", (1,), raw_input_contents=[b"\xff\xff\xff\xffab"])
    return [
        (call("no-such", raw_input_contents=[b"12345678"]), "NOT_FOUND", "is not served"),
        (call("of_FP32", model_version="9", raw_input_contents=[b"12345678"]), "NOT_FOUND", "has no version '9'"),
        (call("of_FP32"), invalid, "has 0 bytes, its shape [1, 2] says 8"),
        (call("of_FP32", raw_input_contents=[b"1234567"]), invalid, "has 7 bytes"),
        (call("of_FP32", raw_input_contents=[b"12345678"] * 2), invalid, "has 2 entries for 1 inputs"),
        (call("of_FP32", shape=(2**40, 2**20), raw_input_contents=[b"1234"]), invalid, "has 4 bytes, its shape"),
        (call("of_FP32", shape=(-1, 2), raw_input_contents=[b""]), invalid, "not a list of at most 8 sizes"),
        (call("of_FP32", shape=(0, 2), raw_input_contents=[b""]), invalid, "is empty"),
        (call("of_FP32", name="y", raw_input_contents=[b"12345678"]), invalid, "inputs.y is unknown"),
        (call("of_FP32", datatype="FP4"), invalid, "'FP4', which is not known"),
        (wrong_field, invalid, "has fp64_contents, and FP32 takes fp32_contents"),
        (out_of_range, invalid, "outside the range of INT8"),
        (half, invalid, "FP16 comes in raw_input_contents only"),
        (no_value, invalid, "parameters.x has no value"),
        (not_bool, invalid, "neither 0 nor 1"),
        (nan, invalid, "not finite"),
        (lying, invalid, "its bytes are not 1 elements"),
        (prompt(max_tokens=-1), invalid, "max_tokens"),
        (prompt(max_tokens=10**6), invalid, "exceed this model's context"),
        (prompt(stream=1), invalid, "parameters.stream is not for this protocol"),
        (prompt(speed=1), invalid, "speed is unknown"),
    ]


@pytest.mark.parametrize(("request_", "code", "message"), hostile())
async def test_a_wrong_call_has_a_status_and_a_message_and_the_next_one_works(
    stub: Any, request_: Any, code: str, message: str
) -> None:
    error = await refused(stub, request_)
    assert (error.code().name, message in str(error.details())) == (code, True), error.details()
    assert len((await stub.ModelInfer(prompt(max_tokens=3))).raw_output_contents) == 1


async def test_a_busy_model_says_when_to_try_again(stub: Any, backend: ScriptedBackend) -> None:
    backend.error = QueueFullError("too much waits; try again", retry_after_s=2.5)
    error = await refused(stub, prompt())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "2500") in list(error.trailing_metadata())


@pytest.mark.parametrize("given", ["0", "-5", "1.5", "soon", "9" * 30])
async def test_a_time_limit_that_is_none_is_refused(stub: Any, given: str) -> None:
    error = await refused(stub, prompt(), metadata=[("x-request-timeout-ms", given)])
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a number of milliseconds" in str(error.details())


async def test_a_time_limit_ends_the_call_and_its_sequence(stub: Any, backend: ScriptedBackend) -> None:
    error = await refused(stub, prompt(max_tokens=400), metadata=[("x-request-timeout-ms", "300")])
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (backend.num_open, backend.num_aborted) == (0, 1)


async def test_a_call_that_is_cancelled_aborts_its_sequence(stub: Any, backend: ScriptedBackend) -> None:
    running = stub.ModelInfer(prompt(max_tokens=400))
    await until(lambda: bool(backend.requests))
    running.cancel()
    await until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 1


async def test_calls_of_a_stream_run_side_by_side_and_fail_alone(stub: Any, backend: ScriptedBackend) -> None:
    first, wrong, last = prompt("aaaa", max_tokens=20), prompt(), prompt("zzzz", max_tokens=20)
    wrong.model_name = "no-such"
    first.id, wrong.id, last.id = "first", "wrong", "last"
    texts = {"first": b"", "last": b""}
    order, errors = [], []
    stream = stub.ModelStreamInfer(iter([first, wrong, last]))
    async for answer in stream:
        if answer.error_message:
            errors.append((answer.infer_response.id, answer.error_message))
            continue
        texts[answer.infer_response.id] += answer.infer_response.raw_output_contents[0][4:]
        order.append(answer.infer_response.id)
    assert len(errors) == 1
    assert errors[0][0] == "wrong"
    assert "is not served" in errors[0][1]
    assert [len(text) > 10 for text in texts.values()] == [True, True]
    assert order != sorted(order), "each waited for the other"
    assert backend.num_open == 0


async def test_a_stream_that_is_left_aborts_its_sequences(stub: Any, backend: ScriptedBackend) -> None:
    stream = stub.ModelStreamInfer(iter([prompt(max_tokens=400), prompt(max_tokens=400)]))
    await stream.read()
    stream.cancel()
    await until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 2


async def test_a_client_that_reads_late_loses_nothing(stub: Any, backend: ScriptedBackend) -> None:
    answers = aiter(stub.ModelStreamInfer(iter([prompt(max_tokens=400)])))
    text = (await anext(answers)).infer_response.raw_output_contents[0][4:]
    await until(lambda: backend.num_open == 0)
    async for answer in answers:
        text += answer.infer_response.raw_output_contents[0][4:]
    whole = await stub.ModelInfer(prompt(max_tokens=400))
    assert text == whole.raw_output_contents[0][4:]


async def test_a_message_above_the_limit_is_refused_and_the_next_one_works(stub: Any) -> None:
    large = call("of_FP32", shape=(2**18, 2))
    large.raw_input_contents.append(bytes(2**21))
    error = await refused(stub, large)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than max_request_bytes=1048576" in error.details()
    small = call("of_FP32")
    small.raw_input_contents.append(bytes(8))
    assert (await stub.ModelInfer(small)).outputs[0].name == "x_again"
