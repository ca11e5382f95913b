"""Calls of tritonclient over gRPC, which test_clients.py runs in a process of their own.

tritonclient's generated code has the names of ours, and one process cannot hold both.
"""

import os
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.integration.serve_cluster import assert_within

GRPC_ADDRESS, HTTP_URL = os.environ["TEST_GRPC_ADDRESS"], os.environ["TEST_HTTP_URL"]


@pytest.fixture
def client() -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(GRPC_ADDRESS) as client:
        yield client


def post(path: str, **body: Any) -> Any:
    response = httpx.post(f"{HTTP_URL}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def seconds_until(is_true: Callable[[], bool], limit_s: float) -> float:
    started = time.monotonic()
    while not is_true():
        assert time.monotonic() - started < limit_s
        time.sleep(0.05)
    return time.monotonic() - started


def is_idle() -> bool:
    copies = httpx.get(f"{HTTP_URL}/health", timeout=30).json()["models"]["demo"]
    return bool(copies) and all(copy["num_running"] == 0 for copy in copies)


def text_input(*texts: str) -> triton.InferInput:
    given = triton.InferInput("text_input", [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
    return given


def rows(array: np.ndarray) -> triton.InferInput:
    given = triton.InferInput("input", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return given


def test_the_server_and_its_models_describe_themselves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("demo")
    assert client.get_server_metadata().name == "rayshard"
    metadata = client.get_model_metadata("linear")
    (given,) = metadata.inputs
    assert (given.name, given.datatype, list(given.shape)) == ("input", "FP32", [-1, 4])


def test_both_carriers_give_the_same_answers(client: triton.InferenceServerClient) -> None:
    array = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    over_grpc = client.infer("linear", [rows(array)], request_id="5")
    assert over_grpc.get_response().id == "5"
    over_http = post("/predict", model="linear", inputs={"input": array.tolist()})["outputs"]["output"]
    assert over_grpc.as_numpy("output").reshape(-1).tolist() == pytest.approx(over_http["data"], abs=1e-7)
    vectors = client.infer("minilm", [text_input("one text", "ü")]).as_numpy("embedding")
    expected = [one["embedding"] for one in post("/v1/embeddings", model="minilm", input=["one text", "ü"])["data"]]
    assert np.abs(vectors - np.array(expected)).max() < 1e-6


def test_a_text_is_continued_whole_and_streamed(client: triton.InferenceServerClient) -> None:
    prompt, parameters = "abc abc abc", {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
    expected = post("/v1/completions", model="demo", prompt=prompt, **parameters)["choices"][0]["text"]
    whole = client.infer("demo", [text_input(prompt)], parameters=parameters).as_numpy("text_output")
    assert [text.decode() for text in whole.tolist()] == [expected]
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error if result is None else result))
    for call_id in ("1", "2"):
        client.async_stream_infer(
            "demo", [text_input(prompt)], request_id=call_id, parameters=parameters, enable_empty_final_response=True
        )
    texts = {"1": "", "2": ""}
    num_pieces = 0
    for _final in texts:
        while True:
            result = answers.get(timeout=60)
            assert not isinstance(result, InferenceServerException), result
            response = result.get_response()
            if response.parameters["triton_final_response"].bool_param:
                break
            texts[response.id] += "".join(text.decode() for text in result.as_numpy("text_output").tolist())
            num_pieces += 1
    assert texts == {"1": expected, "2": expected}
    assert num_pieces > 8
    client.async_stream_infer("no-such", [text_input("a")], request_id="3")
    assert "is not served" in str(answers.get(timeout=60))
    client.stop_stream()


@pytest.mark.parametrize(
    ("model", "shape", "status", "message"),
    [
        ("no-such", (1, 4), "NOT_FOUND", "is not served"),
        ("linear", (1, 3), "INVALID_ARGUMENT", r"has shape \[1, 3\], the model takes \[-1, 4\]"),
    ],
)
def test_a_wrong_call_has_a_status_and_the_next_one_works(
    client: triton.InferenceServerClient, model: str, shape: tuple[int, int], status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(model, [rows(np.ones(shape, np.float32))])
    assert caught.value.status() == f"StatusCode.{status}"
    assert client.infer("linear", [rows(np.ones((1, 4), np.float32))]).as_numpy("output").shape == (1, 2)


def test_a_time_limit_ends_a_call_and_frees_its_blocks(client: triton.InferenceServerClient) -> None:
    parameters = {"max_tokens": 500, "ignore_eos": True}

    def seconds_to_free() -> float:
        with pytest.raises(InferenceServerException, match=r"longer than 0\.05 s") as caught:
            client.infer("demo", [text_input("a")], parameters=parameters, headers={"x-request-timeout-ms": "50"})
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        return seconds_until(is_idle, 30)

    assert_within(1, seconds_to_free)  # a copy tells its state twice a second


def test_a_client_that_leaves_frees_its_blocks(client: triton.InferenceServerClient) -> None:
    parameters = {"max_tokens": 900, "ignore_eos": True}

    def seconds_to_free() -> float:
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error if result is None else result))
        client.async_stream_infer("demo", [text_input("a")], parameters=parameters)
        answers.get(timeout=60)
        seconds_until(lambda: not is_idle(), 30)  # a copy tells its state twice a second
        client.stop_stream(cancel_requests=True)
        return seconds_until(is_idle, 30)

    assert_within(3, seconds_to_free)


def test_large_tensors_pass(client: triton.InferenceServerClient) -> None:
    array = np.ones((2**21, 4), np.float32)  # 32 MB
    started = time.monotonic()
    assert client.infer("linear", [rows(array)], client_timeout=60).as_numpy("output").shape == (2**21, 2)
    assert time.monotonic() - started < 60
