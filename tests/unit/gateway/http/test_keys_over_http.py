"""Who may do what over HTTP, with which API key; and what /health shows to whom."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from serve_app.backend.protocol import Newcomer
from tests.api_keys import GuardedGateway, bearer, guarded_gateway
from tests.unit.gateway.http.test_app import until

COMPLETIONS = "/v1/completions"
NO_KEYS = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer nonsense"},
    {"authorization": "Bearer rs_00000000_" + "a" * 43},
    {"authorization": "Basic abc"},
    {"host": "evil/health"},
    {"x-forwarded-path": "/health"},
]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[GuardedGateway]:
    async with guarded_gateway(tmp_path) as gateway:
        yield gateway


async def test_nothing_but_probes_is_open(guarded: GuardedGateway) -> None:
    for path in ("/v1/models", "/v2", "/health/", "//v1/models", "/console/", "/health/../v1/models", "/models"):
        for headers in NO_KEYS:
            response = await guarded.client.get(path, headers=headers)
            assert response.status_code == 401, (path, headers, response.text)
            assert response.headers["www-authenticate"] == "Bearer"
            error = response.json()["error"]
            assert "API key" in (error if isinstance(error, str) else error["message"])


async def test_probes_are_open(guarded: GuardedGateway) -> None:
    for path in ("/health", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert (await guarded.client.get(path)).status_code == 200


async def test_the_openai_client_comes_in_with_its_key(guarded: GuardedGateway) -> None:
    url = f"{guarded.client.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=guarded.keys[0], max_retries=0) as caller:
        assert (await caller.completions.create(model="tiny", prompt="hi", max_tokens=3)).usage is not None
    async with openai.AsyncOpenAI(base_url=url, api_key=guarded.keys[0] + "x", max_retries=0) as caller:
        with pytest.raises(openai.AuthenticationError):
            await caller.models.list()


async def test_prompts_are_cached_for_their_own_key_alone(guarded: GuardedGateway) -> None:
    async def salt_of(key: str, **more: str) -> str:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 1, **more}
        answer = await guarded.client.post("/v1/completions", json=body, headers=bearer(key))
        assert answer.status_code == 200, answer.text
        return guarded.backend.requests[-1].cache_salt

    every, some = guarded.keys[0], guarded.keys[5]
    salts = [await salt_of(every), await salt_of(some), await salt_of(every, cache_salt="a")]
    assert len({"", *salts}) == 4
    assert await salt_of(every, cache_salt="a") == salts[2]
    assert await salt_of(every) == salts[0]


async def test_a_conversation_is_its_keys_alone_and_named_by_body_or_header(guarded: GuardedGateway) -> None:
    async def session_of(key: str, header: str | None = None, **more: str) -> str:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 1, **more}
        headers = bearer(key) | ({} if header is None else {"x-session-id": header})
        answer = await guarded.client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return guarded.backend.requests[-1].session

    every, some = guarded.keys[0], guarded.keys[5]
    assert await session_of(every) == await session_of(every, "") == ""
    mine = await session_of(every, "talk")
    assert "talk" not in mine
    assert (
        mine
        == await session_of(every, prompt_cache_key="talk")
        == await session_of(every, "x", prompt_cache_key="talk")
    )
    assert len({mine, await session_of(some, "talk"), await session_of(every, "walk")}) == 3
    assert await session_of(every, user="talk", safety_identifier="talk") == ""


async def test_a_request_is_its_keys_wherever_it_comes_from(guarded: GuardedGateway) -> None:
    for key in (guarded.keys[0], guarded.keys[5]):
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
        assert (await guarded.client.post("/v1/completions", json=body, headers=bearer(key))).status_code == 200
    owners = [request.owner for request in guarded.backend.requests]
    assert len(set(owners)) == 2
    assert all(owner.startswith("key ") for owner in owners)


async def test_a_model_that_is_not_allowed_is_not_there(guarded: GuardedGateway) -> None:
    headers = bearer(guarded.keys[1])
    assert (await guarded.client.get("/v1/models", headers=headers)).json()["data"] == []
    for path, body in (
        (COMPLETIONS, {"model": "tiny", "prompt": "a"}),
        ("/v2/models/tiny/infer", {"inputs": []}),
        ("/v1/models/tiny:predict", {"instances": ["a"]}),
        ("/predictions/tiny", "a"),
    ):
        response = await guarded.client.post(path, json=body, headers=headers)
        assert response.status_code == 404, response.text
    assert (await guarded.client.get("/v1/models/tiny", headers=headers)).status_code == 404


async def test_limits_answer_429_with_a_time(guarded: GuardedGateway) -> None:
    headers = bearer(guarded.keys[2])
    assert (await guarded.client.get("/v1/models", headers=headers)).status_code == 200
    refused = await guarded.client.get("/v1/models", headers=headers)
    assert (refused.status_code, int(refused.headers["retry-after"]) > 30) == (429, True)
    assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_a_stream_counts_until_it_has_ended(guarded: GuardedGateway) -> None:
    guarded.backend.step_s = 0.2
    headers = bearer(guarded.keys[3])
    body = {"model": "tiny", "prompt": "a", "max_tokens": 60, "stream": True}
    async with guarded.client.stream("POST", COMPLETIONS, json=body, headers=headers) as stream:
        await anext(stream.aiter_lines())
        assert (await guarded.client.get("/v1/models", headers=headers)).status_code == 429
    await until(lambda: guarded.backend.num_open == 0)
    async with asyncio.timeout(10):
        while True:
            if (await guarded.client.get("/v1/models", headers=headers)).status_code == 200:
                break
            await asyncio.sleep(0.01)


async def test_tokens_of_an_answer_are_counted(guarded: GuardedGateway) -> None:
    headers = bearer(guarded.keys[4])
    body = {"model": "tiny", "prompt": "zz", "max_tokens": 6}  # 9 tokens with BOS, as many as there are
    assert (await guarded.client.post(COMPLETIONS, json=body, headers=headers)).status_code == 200
    refused = await guarded.client.post(COMPLETIONS, json=body, headers=headers)
    assert "has used its tokens of this minute" in refused.text
    assert "retry-after" in refused.headers


async def test_calls_that_would_come_to_more_tokens_are_refused_before_they_run(guarded: GuardedGateway) -> None:
    headers = bearer(guarded.keys[4])
    body = {"model": "tiny", "prompt": "zz", "max_tokens": 300, "stream": True}
    calls = [guarded.client.post(COMPLETIONS, json=body, headers=headers) for _ in range(10)]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {429}
    assert "ask for at most 6" in answers[0].json()["error"]["message"]
    assert (answers[0].headers["x-should-retry"], "retry-after" in answers[0].headers) == ("false", False)
    assert not guarded.backend.requests


async def test_calls_at_once_share_what_is_left(guarded: GuardedGateway) -> None:
    guarded.backend.step_s = 0.05
    headers = bearer(guarded.keys[4])
    body = {"model": "tiny", "prompt": "zz", "max_tokens": 4}
    calls = [guarded.client.post(COMPLETIONS, json=body, headers=headers) for _ in range(4)]
    assert sorted(answer.status_code for answer in await asyncio.gather(*calls)) == [200, 429, 429, 429]


async def test_an_answer_of_no_stated_length_is_as_long_as_the_key_allows(guarded: GuardedGateway) -> None:
    headers = bearer(guarded.keys[5])
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
    answer = await guarded.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.json()["usage"]["total_tokens"] == 60
    assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_a_response_of_no_stated_length_is_as_long_as_the_key_allows(guarded: GuardedGateway) -> None:
    answer = await guarded.client.post("/v1/responses", json={"input": "hi"}, headers=bearer(guarded.keys[5]))
    assert answer.json()["usage"]["total_tokens"] == 60
    assert answer.json()["status"] == "incomplete"


async def test_health_without_a_key_says_up_or_down(guarded: GuardedGateway) -> None:
    assert (await guarded.client.get("/health")).json() == {"status": "ok"}
    guarded.backend.is_healthy = False
    answer = await guarded.client.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
    guarded.backend.newcomers = {"secret": Newcomer("starting", "")}
    assert (await guarded.client.get("/health")).json() == {"status": "unavailable", "num_starting": 1}


async def test_health_with_a_key_shows_its_models(guarded: GuardedGateway) -> None:
    guarded.backend.newcomers = {"secret": Newcomer("starting", "")}
    whole = (await guarded.client.get("/health", headers=bearer(guarded.keys[0]))).json()
    assert (list(whole["models"]), list(whole["newcomers"])) == (["tiny"], ["secret"])
    assert (await guarded.client.get("/health", headers=bearer(guarded.keys[1]))).json() == {
        "status": "ok",
        "num_starting": 1,
        "detail": "",
        "models": {},
    }
    assert (await guarded.client.get("/health", headers=bearer("nonsense"))).status_code == 401
    for _ in range(3):  # a probe uses up nothing
        assert (await guarded.client.get("/health", headers=bearer(guarded.keys[2]))).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
async def test_two_keys_are_refused(guarded: GuardedGateway, path: str) -> None:
    headers = [("authorization", f"Bearer {key}") for key in guarded.keys[:2]]
    answer = await guarded.client.get(path, headers=headers)
    assert (answer.status_code, "send one" in answer.text) == (400, True)
