"""Ollama's API, by Ollama's own client and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
import pytest_asyncio

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import UnavailableError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.ollama import OllamaChatBody, OllamaPiece
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.ollama import OllamaCalls
from serve_app.gateway.http import sse
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.http.ollama_answers import OllamaTimes
from serve_app.types.generation import SamplingDefaults
from serve_app.types.tensors import TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving
from tests.openai_calls import chat_body, client_of
from tests.unit.gateway.http.openai.test_tool_calls import ARGUMENTS, CALL, HERMES, WEATHER, backend_of
from tests.unit.gateway.http.test_inference_routes import answer, description

MESSAGES = [{"role": "user", "content": "hello"}]
THINKING = f"<think>hm</think>Well.<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"


async def ask(backend: ScriptedBackend, call: Callable[[ollama.Client], Any]) -> Any:
    """What Ollama's client makes of the server's answer."""
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with serving(app) as url:

        def run() -> Any:
            with ollama.Client(host=url, verify=NO_TLS) as client:
                return call(client)

        return await asyncio.to_thread(run)


@pytest_asyncio.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client


def saying(backend: ScriptedBackend, text: str) -> ScriptedBackend:
    backend.script = lambda _request, _choice: [*backend.ids(text), backend.eos_token_id]
    return backend


def prompts(backend: ScriptedBackend) -> list[str]:
    return [backend.text(request.prompt_token_ids) for request in backend.requests]


async def refused(client: httpx.AsyncClient, path: str, **body: Any) -> str:
    """What an error says."""
    response = await client.post(path, json={"model": "tiny", **body})
    assert response.status_code == 400, response.text
    error = response.json()
    assert list(error) == ["error"]
    message: str = error["error"]
    return message


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_the_client_gets_answers(backend: ScriptedBackend, is_chat: bool, is_streamed: bool) -> None:
    text = "Hello\u2028you."
    saying(backend, text)
    keys: Any = {"model": "tiny:latest", "stream": is_streamed, "logprobs": True, "top_logprobs": 2, "keep_alive": "5m"}

    def call(client: ollama.Client) -> Any:
        made: Any = client.chat(messages=MESSAGES, **keys) if is_chat else client.generate(prompt="hello", **keys)
        return list(made) if is_streamed else [made]

    before = datetime.now(UTC)
    pieces = await ask(backend, call)
    assert prompts(backend) == ["[user]hello[assistant]"]
    assert "".join(piece.message.content if is_chat else piece.response for piece in pieces) == text
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert {piece.model for piece in pieces} == {"tiny"}
    last = pieces[-1]
    assert before <= datetime.fromisoformat(last.created_at) <= datetime.now(UTC)
    assert (last.done_reason, last.load_duration) == ("stop", 0)
    num_tokens = len(backend.ids(text)) + 1
    assert (last.prompt_eval_count, last.eval_count) == (len(backend.requests[0].prompt_token_ids), num_tokens)
    assert 0 < last.prompt_eval_duration + last.eval_duration <= last.total_duration < 60e9
    tokens = [one for piece in pieces for one in piece.logprobs or []]
    assert len(tokens) == num_tokens
    assert [(one.logprob, one.top_logprobs[1].logprob) for one in tokens] == [(-0.5, -1.5)] * num_tokens


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_calls_come_whole_beside_thoughts(tmp_path: Path, is_streamed: bool) -> None:
    backend = backend_of(tmp_path, answer=THINKING)
    keys: Any = {"model": "tiny", "messages": MESSAGES, "tools": [WEATHER], "stream": is_streamed, "think": True}
    made = await ask(backend, lambda client: list(client.chat(**keys)) if is_streamed else [client.chat(**keys)])
    assert "the forecast" in prompts(backend)[0]
    calls = [call for piece in made for call in piece.message.tool_calls or []]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", json.loads(ARGUMENTS))] * 2
    assert "".join(piece.message.thinking or "" for piece in made) == "hm"
    assert "".join(piece.message.content for piece in made) == "Well."
    assert (made[-1].done, made[-1].done_reason) == (True, "stop")


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_call_that_broke_off_is_shown_as_it_is(tmp_path: Path, is_streamed: bool) -> None:
    backend = backend_of(tmp_path, answer=f"<tool_call>{CALL}</tool_call>")
    num_predict = len(backend.ids(f"<tool_call>{CALL[:-8]}"))
    keys: Any = {"model": "tiny", "messages": MESSAGES, "tools": [WEATHER], "options": {"num_predict": num_predict}}
    keys["stream"] = is_streamed
    made = await ask(backend, lambda client: list(client.chat(**keys)) if is_streamed else [client.chat(**keys)])
    assert [piece.message.tool_calls for piece in made if piece.message.tool_calls] == []
    content = "".join(piece.message.content for piece in made)
    assert content.startswith('{"name": "weather", "arguments": {"city"')
    assert made[-1].done_reason == "length"


async def test_a_history_is_shown_to_the_template(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    first: Any = await ask(backend, lambda client: client.chat("tiny", MESSAGES, tools=[WEATHER]))
    found = {"role": "tool", "tool_name": "weather", "content": "grey"}
    messages: Any = [{"role": "system", "content": "short"}, *MESSAGES, first.message, found]
    await ask(backend, lambda client: client.chat("tiny", messages, tools=[WEATHER]))
    prompt = prompts(backend)[1].replace("<tool_call>", "").replace("</tool_call>", "")
    assert prompt.endswith(
        "<user>hello<assistant>Well.weather,city=Köln,days=2weather,city=Köln,days=2<tool>grey<assistant>"
    )
    assert "<system>short" in prompt


async def test_options_reach_the_model(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    options = {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "seed": 3, "repeat_penalty": 1.5}
    options |= {"presence_penalty": 0.75, "frequency_penalty": 0.25, "num_predict": 4, "repeat_last_n": -1}
    neutral = {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "numa": False, "num_gpu": None}
    for keys in ({"options": {**options, **neutral}, "priority": 9}, {"options": {**options, "repeat_last_n": 0}}):
        body = {**chat_body(), "stream": False, "tools": [], "format": "", **keys}
        assert (await client.post("/api/chat", json=body)).status_code == 200
    request, unpenalized = backend.requests
    params = request.params
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.seed) == (0.5, 7, 0.25, 0.125, 3)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.5, 0.75, 0.25)
    assert (params.max_tokens, request.priority, params.grammar) == (4, 9, None)
    assert unpenalized.params.repetition_penalty == 1.0


async def test_a_seed_below_zero_is_another_each_time(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    for _ in range(2):
        body = {**chat_body(), "options": {"seed": -1, "num_predict": 1}}
        assert (await client.post("/api/chat", json=body)).status_code == 200
    first, second = [request.params.seed for request in backend.requests]
    assert first != second
    assert min(first, second) >= 0


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_an_answer_ends_with_the_context_that_is_asked_for(
    client: httpx.AsyncClient, backend: ScriptedBackend, path: str
) -> None:
    body: dict[str, Any] = {"messages": MESSAGES} if path == "/api/chat" else {"prompt": "hello", "raw": True}
    for options in ({"num_predict": -1}, {"num_ctx": 100}, {"num_ctx": 100, "num_predict": 5}):
        assert (await client.post(path, json={"model": "tiny", **body, "options": options})).status_code == 200
    num_prompt = len(backend.requests[0].prompt_token_ids)
    max_tokens = [request.params.max_tokens for request in backend.requests]
    assert max_tokens == [512 - num_prompt, 100 - num_prompt, 5]
    for options, named in (
        ({"num_ctx": 513}, "options.num_ctx=513 is more than"),
        ({"num_ctx": 2}, "options.num_ctx=2 has no room"),
        ({"num_ctx": 100, "num_predict": 100}, "options.num_ctx=100 has no room"),
        ({"num_predict": 513}, "options.num_predict=513"),
    ):
        assert named in await refused(client, path, **body, options=options)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_an_answer_is_held_to_its_format(client: httpx.AsyncClient, backend: ScriptedBackend, path: str) -> None:
    body: dict[str, Any] = {"messages": MESSAGES} if path == "/api/chat" else {"prompt": "hello"}
    schema = {"type": "object", "properties": {"a": {"enum": ["zebra"]}}}
    for given in ("json", schema):
        keys = {"format": given, "options": {"num_predict": 1}}
        assert (await client.post(path, json={"model": "tiny", **body, **keys})).status_code == 200
    free, held = [request.params.grammar or "" for request in backend.requests]
    assert free
    assert "zebra" not in free
    assert "zebra" in held
    assert "format" in await refused(client, path, **body, format={"not": {}})
    assert "format='xml'" in await refused(client, path, **body, format="xml")


async def test_a_prompt_stands_in_the_template_unless_it_is_raw(backend: ScriptedBackend) -> None:
    options = {"num_predict": 1}
    await ask(backend, lambda client: client.generate("tiny", "hello", system="short", options=options))
    await ask(backend, lambda client: client.generate("tiny", "hello", raw=True, options=options))
    assert prompts(backend) == ["[system]short[user]hello[assistant]", "hello"]


async def test_a_model_without_a_template_goes_on_with_the_prompt(tmp_path: Path) -> None:
    backend = saying(ScriptedBackend(save_model_dir(tmp_path, chat_template=None)), "a" * 40)
    made = await ask(backend, lambda client: client.generate("tiny", "hello"))
    assert (prompts(backend), made.response) == (["hello"], "a" * 40)


SWITCHED = HERMES.replace(
    "<assistant>", "<assistant>{% if thinking is defined and not thinking %}<think></think>{% endif %}"
)
EFFORT = HERMES.replace("<assistant>", "<assistant>{{ reasoning_effort }}")


async def test_reasoning_is_asked_for_as_the_template_can(tmp_path: Path) -> None:
    for index, (template, think, named) in enumerate(
        [
            (SWITCHED, False, None),
            (SWITCHED, True, None),
            (SWITCHED, "high", "think=high"),
            (HERMES, False, "think=false"),
            (HERMES, True, None),
            (EFFORT, "high", None),
        ]
    ):
        backend = backend_of(tmp_path / str(index), template, answer="Well.")
        backend.changes |= {"reasoning_parser": "think"}
        async with client_of(backend) as client:
            if named is not None:
                assert named in await refused(client, "/api/chat", messages=MESSAGES, think=think)
                continue
            assert (await client.post("/api/chat", json=chat_body(think=think))).status_code == 200
        (prompt,) = [backend.requests[0].prompt_token_ids]
        assert len(prompt) - len(backend.ids(backend.text(prompt))) == (2 if think is False else 0)  # the two marks
        assert backend.text(prompt).endswith("high") == (think == "high")


@pytest.mark.parametrize(
    ("path", "keys", "named"),
    [
        ("/api/chat", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["aa"]}]}, "messages[0].images"),
        ("/api/chat", {"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ("/api/chat", {"think": True}, "think=true"),
        ("/api/chat", {"tools": [WEATHER]}, "tools"),
        ("/api/chat", {"template": "x"}, "template is unknown"),
        ("/api/chat", {"truncate": True}, "truncate=true"),
        ("/api/chat", {"shift": True}, "shift=true"),
        ("/api/chat", {"keep_alive": 0}, "keep_alive=0"),
        ("/api/chat", {"keep_alive": "0s"}, "keep_alive=0s"),
        ("/api/chat", {"keep_alive": "soon"}, "keep_alive='soon'"),
        ("/api/chat", {"top_logprobs": 2}, "top_logprobs=2"),
        ("/api/chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs=21"),
        ("/api/chat", {"options": {"num_gpu": 1}}, "options.num_gpu"),
        ("/api/chat", {"options": {"mirostat": 2}}, "options.mirostat"),
        ("/api/chat", {"options": {"num_keep": 4}}, "options.num_keep"),
        ("/api/chat", {"options": {"repeat_last_n": 64}}, "options.repeat_last_n=64"),
        ("/api/chat", {"options": {"temperature": 3}}, "options.temperature=3"),
        ("/api/chat", {"options": {"stop": [""]}}, "options.stop"),
        ("/api/chat", {"options": {"warmth": 3}}, "options.warmth is unknown"),
        ("/api/generate", {"suffix": "b"}, "suffix"),
        ("/api/generate", {"template": "b"}, "template"),
        ("/api/generate", {"context": [1]}, "context"),
        ("/api/generate", {"images": ["aa"]}, "images"),
        ("/api/generate", {"width": 64}, "width"),
        ("/api/generate", {"raw": True, "system": "b"}, "system"),
        ("/api/generate", {"raw": True, "think": True}, "think"),
        ("/api/generate", {"raw": True, "top_logprobs": 2}, "top_logprobs=2"),
        ("/api/show", {"verbose": True}, "verbose=true"),
    ],
)
async def test_what_cannot_be_done_is_refused(client: httpx.AsyncClient, path: str, keys: Any, named: str) -> None:
    least: dict[str, Any] = {"/api/chat": {"messages": MESSAGES}, "/api/generate": {"prompt": "a"}, "/api/show": {}}
    assert named in await refused(client, path, **{**least[path], **keys})


async def test_what_does_no_harm_is_taken(client: httpx.AsyncClient) -> None:
    for keep_alive in (-1, 300, "24h", "1m30s", "-1m", "-1"):
        body = chat_body(keep_alive=keep_alive, options={"num_predict": 1}, truncate=False, shift=False)
        assert (await client.post("/api/chat", json=body)).status_code == 200


async def test_nothing_asked_means_is_it_there(backend: ScriptedBackend) -> None:
    loaded = [
        await ask(backend, lambda client: client.chat("tiny", [])),
        await ask(backend, lambda client: client.generate("tiny", "")),
        *await ask(backend, lambda client: list(client.generate("tiny", stream=True))),
    ]
    assert [(one.done, one.done_reason) for one in loaded] == [(True, "load")] * 3
    assert backend.requests == []
    backend.is_healthy = False
    with pytest.raises(ollama.ResponseError, match="no copy that is ready") as caught:
        await ask(backend, lambda client: client.generate("tiny", ""))
    assert caught.value.status_code == 503


@pytest.fixture
def embedder(tmp_path: Path) -> ScriptedBackend:
    directory = save_model_dir(tmp_path)
    backend = ScriptedBackend(directory, infer_script=answer)
    vector = {"embedding": TensorSpec("float32", ("batch", 3))}
    backend.extra_models = [description(directory, "vectors", "embed", vector, embedding_size=3)]
    return backend


async def test_vectors_have_length_one(embedder: ScriptedBackend) -> None:
    made = await ask(embedder, lambda client: client.embed("vectors", ["ab", "c"]))
    assert np.linalg.norm(made.embeddings, axis=1) == pytest.approx([1, 1])
    assert (made.model, made.prompt_eval_count) == ("vectors", 5)
    assert 0 < made.total_duration < 60e9
    short = await ask(embedder, lambda client: client.embed("vectors", "ab", dimensions=2))
    assert len(short.embeddings[0]) == 2


async def test_long_texts_are_cut_unless_told_otherwise(embedder: ScriptedBackend) -> None:
    long = "abcdef" * 9
    made = await ask(embedder, lambda client: client.embed("vectors", long))
    fewer = await ask(embedder, lambda client: client.embed("vectors", long, options={"num_ctx": 5}))
    assert (made.prompt_eval_count, fewer.prompt_eval_count) == (12, 5)
    async with client_of(embedder) as client:
        for keys, named in (
            ({"truncate": False}, "input has 55 tokens"),
            ({"options": {"num_ctx": 99}}, "options.num_ctx=99"),
            ({"options": {"num_ctx": 5}, "truncate": False}, "options.num_ctx=5"),
            ({"options": {"temperature": 1}}, "options.temperature"),
            ({"options": {"num_thread": 1}}, "options.num_thread"),
            ({"keep_alive": "0"}, "keep_alive=0"),
            ({"dimensions": 9}, "dimensions=9"),
            ({"model": "tiny"}, "model=tiny serves generate"),
        ):
            assert named in await refused(client, "/api/embed", **{"model": "vectors", "input": long, **keys})


async def test_models_are_told_of(embedder: ScriptedBackend) -> None:
    embedder.changes = {
        "tool_parser": "hermes",
        "reasoning_parser": "think",
        "sampling": SamplingDefaults(temperature=0.7, top_k=20),
    }
    tags = await ask(embedder, lambda client: client.list())
    assert [(one.model, one.details.format) for one in tags.models] == [
        ("tiny", "safetensors"),
        ("vectors", "safetensors"),
    ]
    assert tags.models[0].modified_at == datetime.fromtimestamp(1_700_000_000, UTC)
    running = await ask(embedder, lambda client: client.ps())
    assert [(one.model, one.context_length) for one in running.models] == [("tiny", 512)]
    shown = await ask(embedder, lambda client: client.show("tiny:latest"))
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.parameters == "temperature 0.7\ntop_k 20"
    assert shown.modelinfo["rayshard.context_length"] == 512
    vectors = await ask(embedder, lambda client: client.show("vectors"))
    assert (vectors.capabilities, vectors.modelinfo["rayshard.embedding_length"]) == (["embedding"], 3)
    async with client_of(embedder) as client:
        assert (await client.get("/api/version")).json() == (await client.get("/version")).json()
        assert "model is missing" in (await client.post("/api/show", json={})).json()["error"]


async def test_errors_are_texts(backend: ScriptedBackend) -> None:
    with pytest.raises(ollama.ResponseError, match="model='nope' is not served") as caught:
        await ask(backend, lambda client: client.show("nope"))
    assert caught.value.status_code == 404
    backend.error = UnavailableError("the copy is gone")
    for fail_at_step, status in ((0, 503), (2, -1)):
        backend.fail_at_step = fail_at_step
        with pytest.raises(ollama.ResponseError, match="the copy is gone") as caught:
            await ask(backend, lambda client: list(client.chat("tiny", MESSAGES, stream=True)))
        assert caught.value.status_code == status
    async with client_of(backend) as client:
        for path, code in (("/api/nope", 404), ("/api/chat", 405)):
            response = await client.get(path)
            assert (response.status_code, type(response.json()["error"])) == (code, str)


async def test_a_stream_that_pauses_is_kept_alive(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE_S", 0.01)
    saying(backend, "abc").step_s = 0.05
    async with client_of(backend) as client:
        response = await client.post("/api/chat", json=chat_body())
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = response.text.split("\n")
    assert any(line.startswith(" ") for line in lines)
    assert "".join(json.loads(line)["message"]["content"] for line in lines[:-1]) == "abc"
    assert lines[-1] == ""


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda client: client.pull("tiny"), "/api/pull is not served"),
        (lambda client: list(client.pull("tiny", stream=True)), "/api/pull is not served"),
        (lambda client: client.push("tiny"), "/api/push is not served"),
        (lambda client: client.create("tiny", from_="other"), "/api/create is not served"),
        (lambda client: client.copy("tiny", "other"), "/api/copy is not served"),
        (lambda client: client.delete("tiny"), "/api/delete is not served"),
        (lambda client: client.embeddings("tiny", "a"), "/api/embeddings is not served"),
        (lambda client: client.create_blob(__file__), "/api/blobs is not served"),
    ],
)
async def test_what_is_not_served_says_why(
    backend: ScriptedBackend, call: Callable[[ollama.Client], Any], named: str
) -> None:
    with pytest.raises(ollama.ResponseError, match=named) as caught:
        await ask(backend, call)
    assert caught.value.status_code == 400


async def test_moderations_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/moderations", json={"input": "a"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert response.json()["error"]["message"].startswith("/v1/moderations is not served: ")


async def test_durations_are_those_of_a_clock(backend: ScriptedBackend) -> None:
    plane = DataPlane(saying(backend, "Hello."), GatewayConfig())
    try:
        call = await OllamaCalls(plane).chat(convert_body(chat_body(), OllamaChatBody))
    finally:
        plane.close()
    (run,) = call.runs()
    seconds = iter([10.0, 12.5, 13.0, 99.0])
    times = OllamaTimes(lambda: next(seconds))  # begins at 10
    times.see()
    times.see()  # only the first piece's time is looked at
    last = times.last_piece(OllamaPiece(model="tiny", created_at="", done=False), run, "length")
    assert (last.prompt_eval_duration, last.eval_duration) == (2_500_000_000, 500_000_000)
    assert (last.done, last.done_reason, last.eval_count) == (True, "length", 0)
