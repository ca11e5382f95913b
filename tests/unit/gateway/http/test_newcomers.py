"""Requests for a model that is about to be known: they wait for it, for a while, on every route that calls models."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from serve_app.gateway.calls import models
from tests.unit.gateway.http.test_app import until
from tests.unit.gateway.http.test_inference_routes import Served, served

__all__ = ["served"]  # a fixture

TEXT = [{"role": "user", "content": "ab"}]
CALLS: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/embeddings", {"model": "vectors", "input": "ab"}, 200),
    ("/v1/embeddings", {"model": "vectors", "input": "ab", "add_special_tokens": False}, 200),
    ("/v1/preprocess", {"model": "vectors", "input": "ab"}, 400),  # it has no steps
    ("/v1/explain", {"model": "colours", "against": "vectors", "input": "ab"}, 400),  # they are of two kinds
    ("/invocations", {"model": "vectors", "input": "ab"}, 200),
    ("/embed", {"model": "vectors", "inputs": "ab"}, 200),
    ("/api/embed", {"model": "vectors", "input": "ab"}, 200),
    ("/v2/models/vectors/infer", {"inputs": []}, 400),
    ("/v1/models/vectors:predict", {"instances": ["ab"]}, 200),
    ("/predictions/vectors", {"instances": ["ab"]}, 200),
    ("/v1/tokenize", {"model": "vectors", "prompt": "ab"}, 200),
    ("/v1/completions", {"model": "vectors", "prompt": "ab"}, 400),  # it serves embed
    ("/v1/chat/completions", {"model": "vectors", "messages": TEXT}, 400),
    ("/v1/responses", {"model": "vectors", "input": "ab"}, 400),
    ("/v1/messages", {"model": "vectors", "messages": TEXT, "max_tokens": 1}, 400),
    ("/v2/chat", {"model": "vectors", "messages": TEXT}, 400),
    ("/api/chat", {"model": "vectors", "messages": TEXT}, 400),
]


def hide(served: Served, name: str = "vectors") -> None:
    """Let a model be one that is coming."""
    backend = served.backend
    backend.coming = [one for one in backend.extra_models if one.name == name]
    backend.extra_models = [one for one in backend.extra_models if one.name != name]


@pytest.mark.parametrize(("route", "body", "status"), CALLS)
async def test_a_request_is_answered_as_soon_as_its_model_is_known(
    served: Served, route: str, body: dict[str, Any], status: int
) -> None:
    hide(served)
    asking = asyncio.create_task(served.client.post(route, json=body))
    await until(lambda: served.backend.num_waits > 0)
    assert not asking.done()
    served.backend.may_come.set()
    answer = await asking
    assert answer.status_code == status, answer.text
    assert served.backend.num_waits == 1


async def test_it_waits_no_longer_than_its_client_or_a_while(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(served)

    async def ask(**headers: str) -> httpx.Response:
        return await served.client.post("/v1/completions", json={"model": "vectors", "prompt": "ab"}, headers=headers)

    began_s = time.monotonic()
    answers = await asyncio.gather(*(ask(**{"x-request-timeout-ms": "20"}) for _ in range(3)))
    assert time.monotonic() - began_s < models._MEET_S
    monkeypatch.setattr(models, "_MEET_S", 0.02)
    answers.append(await ask())
    assert [(one.status_code, one.headers["retry-after"]) for one in answers] == [(503, "1")] * 4
    assert "some models are still starting" in answers[-1].json()["error"]["message"]


async def test_nobody_waits_for_a_model_that_is_known_or_that_nothing_tells_of(served: Served) -> None:
    known = await served.client.post("/v1/embeddings", json={"model": "vectors", "input": "ab"})
    assert (known.status_code, served.backend.num_waits) == (200, 0)
    unknown = await served.client.post("/v1/embeddings", json={"model": "nobody", "input": "ab"})
    assert unknown.status_code == 404
    hide(served, "module")
    known = await served.client.post("/v1/embeddings", json={"model": "vectors", "input": "ab"})
    assert (known.status_code, served.backend.num_waits) == (200, 1)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/completions", {"prompt": "ab"}),
        ("/v1/completions", {"prompt": "ab", "stream": True}),
        ("/v1/chat/completions", {"messages": TEXT}),
        ("/v1/chat/completions", {"messages": TEXT, "stream": True}),
        ("/v1/responses", {"input": "ab", "stream": True}),
        ("/v1/messages", {"messages": TEXT, "max_tokens": 1}),
        ("/v2/chat", {"messages": TEXT}),
        ("/api/chat", {"messages": TEXT, "stream": False}),
    ],
)
async def test_what_a_request_has_waited_is_taken_off_its_time(
    served: Served, route: str, body: dict[str, Any]
) -> None:
    backend = served.backend
    backend.coming, backend.name = backend.models()[:1], "another"
    name, limit = backend.coming[0].name, {"x-request-timeout-ms": "1000"}
    asking = asyncio.create_task(served.client.post(route, json={"model": name, **body}, headers=limit))
    await until(lambda: backend.num_waits > 0)
    began_s = time.monotonic()
    await asyncio.sleep(0.3)
    waited_s = time.monotonic() - began_s
    backend.name = name
    backend.may_come.set()
    answer = await asking
    assert answer.status_code == 200, answer.text
    (request,) = backend.requests
    assert request.time_left_s is not None
    assert 0 < request.time_left_s <= 1 - waited_s
    await served.client.post(route, json={"model": name, **body}, headers=limit)  # most likely on the same connection
    assert backend.requests[1].time_left_s is not None
    assert backend.requests[1].time_left_s > 1 - waited_s, "each request has a time of its own"
