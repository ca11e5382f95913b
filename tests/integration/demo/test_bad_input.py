"""Bad input through Serve's proxy to the real model: refused by name, and the next request works."""

from typing import Any

import httpx
import pytest

from tests.bad_requests import RAW_BODIES
from tests.integration.serve_cluster import ServeCluster

pytestmark = pytest.mark.timeout(600)  # the first test of a folder may be the one that starts the cluster

DATE, ANSWER = "date jan 8 2038 =", "2038-01-08"

BAD_KEYS: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "nosuch"}, 404, "model"),
    ({"model": 3}, 400, "model"),
    ({"prompt": "", "add_special_tokens": False}, 400, "prompt"),
    ({"prompt": "x" * 2000}, 400, "prompt"),
    ({"prompt": [1, 10**9]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"stop": ["x"] * 10_000}, 400, "stop"),
    ({"n": 100_000}, 400, "n"),
    ({"logprobs": -2}, 400, "logprobs"),
    ({"prompt_logprobs": -2}, 400, "prompt_logprobs"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"repetition_penalty": -5}, 400, "repetition_penalty"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"nosuch": 1}, 400, "nosuch"),
]


@pytest.mark.parametrize(("content", "field"), RAW_BODIES)
def test_bytes_that_are_no_request_are_refused(cluster: ServeCluster, content: bytes, field: str) -> None:
    answer = httpx.post(f"{cluster.url}/v1/completions", content=content, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    assert_it_still_answers(cluster)


@pytest.mark.parametrize(("keys", "status", "field"), BAD_KEYS)
def test_bad_values_are_refused_by_name(cluster: ServeCluster, keys: dict[str, Any], status: int, field: str) -> None:
    body = {"model": "demo", "prompt": DATE, **keys}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == field
    assert field in answer.json()["error"]["message"]
    assert_it_still_answers(cluster)


def test_a_ten_megabyte_body_is_refused(cluster: ServeCluster) -> None:
    answer = httpx.post(f"{cluster.url}/v1/completions", content=b" " * 10_000_000, timeout=60)
    assert answer.status_code == 413
    assert "max_request_bytes" in answer.json()["error"]["message"]
    assert_it_still_answers(cluster)


def test_unknown_paths_and_methods_have_openais_error_shape(cluster: ServeCluster) -> None:
    assert httpx.get(f"{cluster.url}/v1/nothing").json()["error"]["type"]
    assert "no such path" in httpx.get(f"{cluster.url}/v2/nothing").json()["error"], "the protocol's own shape"
    wrong = httpx.get(f"{cluster.url}/v1/completions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["message"]


def assert_it_still_answers(cluster: ServeCluster) -> None:
    answer = cluster.complete("demo", DATE)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"].strip() == ANSWER
