"""What an answer is held to, from OpenAI's and vLLM's keys to the Router."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.fakes import ScriptedBackend, save_model_dir
from tests.openai_calls import CHAT, COMPLETIONS, ask, chat_body, client_of, events, prompt_body

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
FIELD = "response_format.json_schema.schema"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> ScriptedBackend:
    return ScriptedBackend(save_model_dir(tmp_path_factory.mktemp("model")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client


def json_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        (json_schema(SCHEMA), '"required": ["a"]'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, '"type": "object"'),
        ({"response_format": {"type": "json_object"}}, '"type": "object"'),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, '"whitespace_flexible": false'),
        ({"structured_outputs": {"json_object": True, "whitespace_pattern": " ?"}}, '"whitespace_pattern": " ?"'),
        ({"structured_outputs": {"regex": "[a-c]{3}"}}, "start: /[a-c]{3}/"),
        ({"structured_outputs": {"choice": ["a", "b", "a"]}}, 'start: "a" | "b"'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "start:"),
        ({"guided_json": '{"enum": [1]}'}, '"enum": [1]'),
        ({"guided_regex": "(a+)+b"}, "start: /(a+)+b/"),
        ({"guided_choice": ["a"]}, 'start: "a"'),
        ({"guided_grammar": 'start: "a"'}, 'start: "a"'),
        ({"guided_json": True, "guided_whitespace_pattern": "\\n?"}, '"whitespace_pattern": "\\\\n?"'),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_every_way_to_ask_reaches_the_router(
    client: httpx.AsyncClient, backend: ScriptedBackend, path: str, keys: dict[str, Any], part: str
) -> None:
    body = chat_body(**keys) if path == CHAT else prompt_body(**keys)
    await ask(client, path, {**body, "n": 2, "max_tokens": 3})
    grammar = backend.requests[-1].params.grammar
    assert grammar is not None
    assert part in grammar


async def test_text_is_free(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await ask(client, CHAT, chat_body(response_format={"type": "text"}, max_tokens=2))
    assert backend.requests[-1].params.grammar is None
    assert await events(client, CHAT, chat_body(**json_schema(SCHEMA), max_tokens=2))
    assert backend.requests[-1].params.grammar is not None


@pytest.mark.parametrize(
    ("keys", "field", "reason"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object, json_schema, text"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema", "leave it out"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "is unknown"),
        ({"structured_outputs": {}}, "structured_outputs", "needs one of"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "is unknown"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": "b"}}, "structured_outputs", "needs json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "send one of them"),
        ({**json_schema(SCHEMA), "guided_regex": "a"}, "guided_regex", "send one of them"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "needs guided_json"),
        ({"guided_json": '{"type":'}, "guided_json", "is not a JSON schema"),
        ({"guided_regex": "(?<=a)b"}, "guided_regex", "look-around"),
        ({**json_schema(SCHEMA), "ignore_eos": True}, "ignore_eos", "leave it out"),
        ({**json_schema(SCHEMA), "allowed_token_ids": [3]}, "allowed_token_ids", "leave it out"),
        (json_schema({"type": "array", "uniqueItems": True}), FIELD, "'uniqueItems'"),
        (json_schema({"$ref": "http://127.0.0.1:1/x.json"}), FIELD, "nothing is fetched"),
        (json_schema({"$ref": "#"}), FIELD, "no text fits it"),
        (json_schema({"properties": {f"p{one}": {} for one in range(10_000)}}), FIELD, "more than 1000 names"),
        (json_schema({"enum": list(range(20_000))}), FIELD, "more than 5000 values"),
        (json_schema({"type": "integer", "multipleOf": 999_983}), FIELD, "longer than"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    client: httpx.AsyncClient, keys: dict[str, Any], field: str, reason: str
) -> None:
    response = await client.post(CHAT, json=chat_body(**keys))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert reason in error["message"]


async def test_a_model_without_an_end_cannot_be_held(tmp_path: Path) -> None:
    endless = ScriptedBackend(save_model_dir(tmp_path), changes={"eos_token_ids": []})
    async with client_of(endless) as client:
        response = await client.post(CHAT, json=chat_body(response_format={"type": "json_object"}))
    assert response.status_code == 400
    assert "no token that ends an answer" in response.json()["error"]["message"]


async def test_others_are_answered_while_a_bad_grammar_is_tried(client: httpx.AsyncClient) -> None:
    harmful = json_schema({"type": "integer", "multipleOf": 999_961})
    trying = asyncio.create_task(client.post(CHAT, json=chat_body(**harmful)))
    await asyncio.sleep(0)
    started_s = time.process_time()
    num_answered = 0
    while not trying.done():
        await ask(client, CHAT, chat_body(max_tokens=2))
        num_answered += 1
    assert (await trying).status_code == 400
    assert num_answered > 3
    assert time.process_time() - started_s < 10.0
