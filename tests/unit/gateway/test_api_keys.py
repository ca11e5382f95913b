"""API keys: the file, the command that makes them, and who may do what over HTTP and gRPC."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from serve_app.backend.protocol import Newcomer
from serve_app.cli.main import main
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import ConfigError, RateLimitedError, TooManyTokensError, UnauthenticatedError
from serve_app.gateway.api_keys import ApiKeys, KeyHolder
from serve_app.gateway.caller import CALLER
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import digest_of, new_key, read_key_file
from serve_app.protos import open_inference_pb2_grpc as services
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.unit.gateway.grpc.test_open_inference import Methods, Servicer, prompt
from tests.unit.gateway.http.test_app import until

COMPLETIONS = "/v1/completions"


@dataclass
class Clock:
    """Seconds that a test sets."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def write(path: Path, *options: str) -> list[str]:
    """A file with a key for each of these options; the keys."""
    made = [new_key(one) for one in options]
    path.write_text("# keys\n\n" + "".join(f"{line}\n" for _key, line in made))
    return [key for key, _line in made]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# The file


def test_a_line_holds_a_salted_hash_and_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    (key,) = write(path, "name=web models=a,team/b requests_per_minute=60 tokens_per_minute=9 concurrency=2 admin")
    (entry,) = read_key_file(path).values()
    assert digest_of(entry.salt, key) == entry.digest
    assert (entry.name, entry.models, entry.is_admin) == ("web", frozenset({"a", "team/b"}), True)
    assert (entry.requests_per_minute, entry.tokens_per_minute, entry.concurrency) == (60, 9, 2)
    assert key not in path.read_text()
    assert len({new_key("name=x")[0] for _ in range(100)}) == 100


GOOD = new_key("name=good")[1]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "12345678 sha256:00:11 name=x",
        GOOD.replace("name=good", ""),
        GOOD.replace("name=good", "name=a/b"),
        f"{GOOD} speed=9",
        f"{GOOD} concurrency=0",
        f"{GOOD} concurrency=x",
        f"{GOOD} concurrency=1 concurrency=2",
        f"{GOOD} admin=yes",
        f"{GOOD} best_priority=high",
        f"{GOOD} best_priority=1001",
        f"{GOOD} best_priority=",
        f"{GOOD} best_priority=1.5",
        f"{GOOD} models=",
        f"{GOOD}\n{GOOD}",
        f"{GOOD}\n{new_key('name=good')[1]}",
    ],
)
def test_a_wrong_line_is_told_by_its_number_and_not_quoted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# one\n{line}\n")
    with pytest.raises(ConfigError, match=r"line [23]") as caught:
        read_key_file(path)
    assert GOOD.split()[1] not in caught.value.message


def test_the_command_shows_a_key_once_and_keeps_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["key", "new", str(path), "--name", "web", "--models", "a,b", "--requests-per-minute", "5"]) == 0
    key = capsys.readouterr().out.strip()
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    assert main(["key", "new", str(path), "--name", "ops", "--admin"]) == 0
    first, second = read_key_file(path).values()
    assert digest_of(first.salt, key) == first.digest
    assert (first.requests_per_minute, second.is_admin) == (5, True)
    assert main(["key", "new", str(path), "--name", "web"]) == 1
    assert "has a key of name=web" in capsys.readouterr().err
    assert main(["key", "new", str(path), "--name", "x", "--concurrency", "0"]) == 1
    assert len(read_key_file(path)) == 2


def test_a_key_may_have_a_best_priority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["key", "new", str(path), "--name", "batch", "--best-priority", "5"]) == 0
    assert main(["key", "new", str(path), "--name", "urgent", "--best-priority", "-10"]) == 0
    assert main(["key", "new", str(path), "--name", "plain"]) == 0
    assert [entry.best_priority for entry in read_key_file(path).values()] == [5, -10, 0]
    assert main(["key", "new", str(path), "--name", "x", "--best-priority", "5000"]) == 1
    assert "best_priority is not an integer from -1000 to 1000" in capsys.readouterr().err


def test_a_file_of_keys_that_is_not_there_is_found_by_validate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "applications:\n- {name: g, route_prefix: /, import_path: 'serve_app.app:build_gateway', "
        "args: {api_keys_file: keys}}\n"
    )
    assert main(["validate", str(file)]) == 1
    assert "keys cannot be read (FileNotFoundError); make it with `rayshard key new`" in capsys.readouterr().err


# Limits


def holder(path: Path, options: str, clock: Clock) -> tuple[ApiKeys, dict[str, str]]:
    (key,) = write(path, f"name=web {options}")
    return ApiKeys(path, clock), bearer(key)


def enter(keys: ApiKeys, headers: dict[str, str]) -> KeyHolder:
    with keys.used([headers["authorization"]]) as used:
        return used


def test_requests_of_a_minute_are_refilled_evenly(tmp_path: Path) -> None:
    clock = Clock()
    keys, headers = holder(tmp_path / "keys", "requests_per_minute=6", clock)
    for _ in range(6):
        enter(keys, headers)
    with pytest.raises(RateLimitedError, match="has used its requests of this minute") as caught:
        enter(keys, headers)
    assert caught.value.retry_after_s == pytest.approx(10)
    clock.now_s += 10.1
    enter(keys, headers)
    with pytest.raises(RateLimitedError):
        enter(keys, headers)


def test_tokens_are_reserved_before_and_settled_after(tmp_path: Path) -> None:
    clock = Clock()
    keys, headers = holder(tmp_path / "keys", "tokens_per_minute=60", clock)
    used = enter(keys, headers)
    first = used.reserve(10, 40)
    with pytest.raises(RateLimitedError, match="may use 20 tokens, more than key web has left") as caught:
        used.reserve(10, 10)
    assert caught.value.retry_after_s == pytest.approx(10)
    used.settle(first, 15)
    second = used.reserve(10, 35)
    used.settle(second, 145)  # not known before: owed
    with pytest.raises(RateLimitedError, match="has used its tokens of this minute") as caught:
        enter(keys, headers)
    assert caught.value.retry_after_s == pytest.approx(101)
    clock.now_s += 101
    enter(keys, headers)


def test_what_is_given_back_makes_no_more_than_a_minute_s(tmp_path: Path) -> None:
    clock = Clock()
    keys, headers = holder(tmp_path / "keys", "tokens_per_minute=60", clock)
    used = enter(keys, headers)
    taken = used.reserve(0, 60)
    clock.now_s += 60
    used.settle(taken, 0)
    used.reserve(0, 60)
    with pytest.raises(RateLimitedError):
        used.reserve(0, 1)


@pytest.mark.parametrize(
    ("num_input", "num_output", "advice"),
    [(3, 300, r"ask for at most 47 \(max_tokens, times n\)"), (60, 1, "send less text"), (51, 0, "send less text")],
)
def test_more_than_a_minute_s_tokens_are_refused_for_good(
    tmp_path: Path, num_input: int, num_output: int, advice: str
) -> None:
    keys, headers = holder(tmp_path / "keys", "tokens_per_minute=50", Clock())
    with pytest.raises(TooManyTokensError, match=f"key web may use 50 in a minute; {advice}"):
        enter(keys, headers).reserve(num_input, num_output)


@pytest.mark.parametrize("options", ["", "requests_per_minute=9"])
def test_without_a_limit_any_number_of_tokens_is_reserved(tmp_path: Path, options: str) -> None:
    keys, headers = holder(tmp_path / "keys", options, Clock())
    used = enter(keys, headers)
    used.settle(used.reserve(10**9, 10**9), 10**9)
    enter(keys, headers)


def test_a_changed_file_is_read_again_and_what_was_used_stays_used(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "keys"
    keys, headers = holder(path, "requests_per_minute=2 concurrency=1", clock)
    with keys.used([headers["authorization"]]):
        change(path, path.read_text().replace("concurrency=1", "concurrency=2"), clock)
        enter(keys, headers)  # beside the first
        with pytest.raises(RateLimitedError, match="requests of this minute"):
            enter(keys, headers)
    change(path, path.read_text().replace("requests_per_minute=2", "requests_per_minute=5"), clock)
    assert enter(keys, headers).num_running == 0
    change(path, "broken", clock)
    enter(keys, headers)  # those before are in force
    change(path, "", clock)
    with pytest.raises(UnauthenticatedError):
        enter(keys, headers)


def change(path: Path, text: str, clock: Clock) -> None:
    path.write_text(text)
    os.utime(path, ns=(0, int(clock.now_s) * 10**9))
    clock.now_s += 2


# HTTP


@dataclass
class Guarded:
    """A Gateway with keys."""

    client: httpx.AsyncClient
    backend: ScriptedBackend
    keys: list[str]
    plane: DataPlane


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """A test that uses a key outside of a request leaves no caller behind."""
    yield
    CALLER.set(None)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    path = tmp_path / "keys"
    options = ["name=all", "name=other models=other", "name=slow requests_per_minute=1", "name=one concurrency=1"]
    keys = write(path, *options, "name=few tokens_per_minute=9", "name=some tokens_per_minute=60")
    backend = ScriptedBackend(save_model_dir(tmp_path / "model"))
    plane = DataPlane(backend, GatewayConfig(api_keys_file=str(path)))
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield Guarded(client, backend, keys, plane)


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


async def test_nothing_but_probes_is_open(guarded: Guarded) -> None:
    for path in ("/v1/models", "/v2", "/health/", "//v1/models", "/console/", "/health/../v1/models", "/models"):
        for headers in NO_KEYS:
            response = await guarded.client.get(path, headers=headers)
            assert response.status_code == 401, (path, headers, response.text)
            assert response.headers["www-authenticate"] == "Bearer"
            error = response.json()["error"]
            assert "API key" in (error if isinstance(error, str) else error["message"])


async def test_probes_are_open(guarded: Guarded) -> None:
    for path in ("/health", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert (await guarded.client.get(path)).status_code == 200


async def test_the_openai_client_comes_in_with_its_key(guarded: Guarded) -> None:
    url = f"{guarded.client.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=guarded.keys[0], max_retries=0) as caller:
        assert (await caller.completions.create(model="tiny", prompt="hi", max_tokens=3)).usage is not None
    async with openai.AsyncOpenAI(base_url=url, api_key=guarded.keys[0] + "x", max_retries=0) as caller:
        with pytest.raises(openai.AuthenticationError):
            await caller.models.list()


async def test_prompts_are_cached_for_their_own_key_alone(guarded: Guarded) -> None:
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


async def test_a_conversation_is_its_keys_alone_and_named_by_body_or_header(guarded: Guarded) -> None:
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


async def test_a_request_is_its_keys_wherever_it_comes_from(guarded: Guarded) -> None:
    for key in (guarded.keys[0], guarded.keys[5]):
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
        assert (await guarded.client.post("/v1/completions", json=body, headers=bearer(key))).status_code == 200
    owners = [request.owner for request in guarded.backend.requests]
    assert len(set(owners)) == 2
    assert all(owner.startswith("key ") for owner in owners)


async def test_a_model_that_is_not_allowed_is_not_there(guarded: Guarded) -> None:
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


async def test_limits_answer_429_with_a_time(guarded: Guarded) -> None:
    headers = bearer(guarded.keys[2])
    assert (await guarded.client.get("/v1/models", headers=headers)).status_code == 200
    refused = await guarded.client.get("/v1/models", headers=headers)
    assert (refused.status_code, int(refused.headers["retry-after"]) > 30) == (429, True)
    assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_a_stream_counts_until_it_has_ended(guarded: Guarded) -> None:
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


async def test_tokens_of_an_answer_are_counted(guarded: Guarded) -> None:
    headers = bearer(guarded.keys[4])
    body = {"model": "tiny", "prompt": "zz", "max_tokens": 6}  # 9 tokens with BOS, as many as there are
    assert (await guarded.client.post(COMPLETIONS, json=body, headers=headers)).status_code == 200
    refused = await guarded.client.post(COMPLETIONS, json=body, headers=headers)
    assert "has used its tokens of this minute" in refused.text
    assert "retry-after" in refused.headers


async def test_calls_that_would_come_to_more_tokens_are_refused_before_they_run(guarded: Guarded) -> None:
    headers = bearer(guarded.keys[4])
    body = {"model": "tiny", "prompt": "zz", "max_tokens": 300, "stream": True}
    calls = [guarded.client.post(COMPLETIONS, json=body, headers=headers) for _ in range(10)]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {429}
    assert "ask for at most 6" in answers[0].json()["error"]["message"]
    assert (answers[0].headers["x-should-retry"], "retry-after" in answers[0].headers) == ("false", False)
    assert not guarded.backend.requests


async def test_calls_at_once_share_what_is_left(guarded: Guarded) -> None:
    guarded.backend.step_s = 0.05
    headers = bearer(guarded.keys[4])
    body = {"model": "tiny", "prompt": "zz", "max_tokens": 4}
    calls = [guarded.client.post(COMPLETIONS, json=body, headers=headers) for _ in range(4)]
    assert sorted(answer.status_code for answer in await asyncio.gather(*calls)) == [200, 429, 429, 429]


async def test_an_answer_of_no_stated_length_is_as_long_as_the_key_allows(guarded: Guarded) -> None:
    headers = bearer(guarded.keys[5])
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
    answer = await guarded.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.json()["usage"]["total_tokens"] == 60
    assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_a_response_of_no_stated_length_is_as_long_as_the_key_allows(guarded: Guarded) -> None:
    answer = await guarded.client.post("/v1/responses", json={"input": "hi"}, headers=bearer(guarded.keys[5]))
    assert answer.json()["usage"]["total_tokens"] == 60
    assert answer.json()["status"] == "incomplete"


# Health


async def test_health_without_a_key_says_up_or_down(guarded: Guarded) -> None:
    assert (await guarded.client.get("/health")).json() == {"status": "ok"}
    guarded.backend.is_healthy = False
    answer = await guarded.client.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
    guarded.backend.newcomers = {"secret": Newcomer("starting", "")}
    assert (await guarded.client.get("/health")).json() == {"status": "unavailable", "num_starting": 1}


async def test_health_with_a_key_shows_its_models(guarded: Guarded) -> None:
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
async def test_two_keys_are_refused(guarded: Guarded, path: str) -> None:
    headers = [("authorization", f"Bearer {key}") for key in guarded.keys[:2]]
    answer = await guarded.client.get(path, headers=headers)
    assert (answer.status_code, "send one" in answer.text) == (400, True)


# gRPC


async def test_the_same_keys_hold_over_grpc(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
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


def metadata(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


async def code_of(call: Any) -> str:
    return str((await call.code()).name)
