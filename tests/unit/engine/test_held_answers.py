"""From OpenAI's chat route to a random model's sampler and back: what clients get is what their schema says."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import openai
import pytest
import pytest_asyncio
import tokenizers
import torch
from pydantic import BaseModel, Field

from serve_app.engine.grammar_vocabulary import GrammarVocabulary
from serve_app.engine.grammars import Grammars
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.generation import GenerateRequest
from serve_app.types.shards import EngineLimits
from tests.checkpoints import make_checkpoint
from tests.fakes import EOS, ScriptedBackend, byte_fallback_tokenizer, byte_level_tokenizer, save_model_dir
from tests.openai_calls import client_of
from tests.plain_driver import load_runner, run_in_process

LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=512, block_size=4, num_blocks=512)
NUM_CALLS = 10
MARKS = ("<tool_call>", "</tool_call>")
Word = Annotated[str, Field(max_length=4)]


class Owner(BaseModel):
    name: Word
    is_home: bool


class Animal(BaseModel):
    """What the calls ask for."""

    kind: Literal["cat", "dög", "東京"]
    legs: Annotated[int, Field(ge=0, le=8)]
    weight_kg: Annotated[float, Field(ge=0, lt=100)]
    code: Annotated[str, Field(pattern="^[A-Z]{2}-[0-9]+$", max_length=6)]
    owners: Annotated[list[Owner], Field(max_length=2)]
    mother: Word | None


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["byte level", "byte fallback"])
async def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    core = byte_level_tokenizer() if request.param == "byte level" else byte_fallback_tokenizer()
    core.add_tokens([tokenizers.AddedToken(mark, special=request.param == "byte level") for mark in MARKS])
    vocab_size, end = core.get_vocab_size(), core.get_vocab()[EOS]
    directory = make_checkpoint(
        "llama", tmp_path_factory.mktemp("model"), vocab_size=vocab_size, max_position_embeddings=512
    )
    template = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{{ messages[0].content }}"
    tokenizer = Tokenizer.load(save_model_dir(directory, core, chat_template=template))
    grammars = Grammars(lambda: GrammarVocabulary.of(tokenizer, vocab_size, [end]), vocab_size, torch.device("cpu"))
    runner = load_runner(directory, LIMITS, grammars=grammars)

    prepared: set[str] = set()

    def draw(asked: GenerateRequest, choice: int) -> list[int]:
        grammar = asked.params.grammar
        if grammar is not None and grammar not in prepared:  # as a Router has it done ahead of its sequences
            grammars.prepare(grammar)
            prepared.add(grammar)
        params = replace(asked.params, seed=asked.params.seed + choice)
        one = replace(asked, num_choices=1, params=params)
        (outcome,) = run_in_process(runner, LIMITS, [one], eos_token_ids=frozenset([end]))
        assert outcome.finish_reason in ("stop", "length")
        return outcome.token_ids

    backend = ScriptedBackend(Path(directory), draw)
    backend.changes = {"tool_parser": "hermes"}
    async with client_of(backend) as client:
        yield client


PARAMETERS: dict[str, dict[str, Any]] = {
    "move": {
        "type": "object",
        "properties": {"to": {"$ref": "#/$defs/place"}, "fast": {"type": "boolean"}},
        "required": ["to", "fast"],
        "additionalProperties": False,
        "$defs": {"place": {"enum": ["Köln", "here"]}},
    },
    "wait": {
        "type": "object",
        "properties": {"s": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["s"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": one}} for name, one in PARAMETERS.items()]
WAIT = {"type": "function", "function": {"name": "wait"}}
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_openais_client_parses_is_of_its_type(client: httpx.AsyncClient) -> None:
    http: Any = client  # its own is of a fork of httpx, with the same methods
    asking = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", http_client=http, max_retries=0)
    num_ended = 0
    for seed in range(NUM_CALLS):
        try:
            answer = await asking.chat.completions.parse(
                model="tiny",
                messages=[{"role": "user", "content": "an animal"}],
                response_format=Animal,
                seed=seed,
                temperature=1.0,
                max_tokens=300,
            )
        except openai.LengthFinishReasonError:
            continue
        assert isinstance(answer.choices[0].message.parsed, Animal)
        num_ended += 1
    assert num_ended > NUM_CALLS / 2


async def test_choices_streams_and_stop_strings(client: httpx.AsyncClient) -> None:
    schema = {"type": "array", "items": {"enum": ["aé", 1, None]}, "minItems": 2, "maxItems": 4}
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a list"}],
        "structured_outputs": {"json": schema, "disable_any_whitespace": True},
        "seed": 1,
        "n": 3,
        "max_tokens": 60,
        "logprobs": True,
    }
    whole = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    texts = [one["message"]["content"] for one in whole]
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
    streamed = ["", "", ""]
    lines = (await client.post("/v1/chat/completions", json={**body, "stream": True})).text.split("\n\n")
    for line in lines:
        if line.startswith("data: {"):
            for one in json.loads(line.removeprefix("data: "))["choices"]:
                streamed[one["index"]] += one["delta"].get("content") or ""
    assert streamed == texts
    cut = (await client.post("/v1/chat/completions", json={**body, "stop": [","]})).json()["choices"]
    assert [one["message"]["content"] for one in cut] == [text.partition(",")[0] for text in texts]


@pytest.mark.parametrize("choice", ["required", WAIT], ids=["required", "named"])
async def test_a_model_that_has_to_call_calls_with_arguments_of_their_schema(
    client: httpx.AsyncClient, choice: str | dict[str, Any]
) -> None:
    called: set[str] = set()
    for seed in range(NUM_CALLS):
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "go"}],
            "tools": [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS],  # type: ignore[dict-item]
            "tool_choice": choice,
            "parallel_tool_calls": seed % 2 == 0,
            "response_format": {"type": "json_object" if seed % 3 else "text"},  # of a content that there is none of
            "seed": seed,
            "max_tokens": 300,
        }
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        (answer,) = response.json()["choices"]
        if answer["finish_reason"] == "length":
            continue
        calls = [call["function"] for call in answer["message"]["tool_calls"]]
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"] is None
        assert len(calls) == 1 or (choice == "required" and seed % 2 == 0)
        for call in calls:
            jsonschema.validate(json.loads(call["arguments"]), PARAMETERS[call["name"]])
            called.add(call["name"])
    assert called == ({"move", "wait"} if choice == "required" else {"wait"})


async def test_a_model_that_may_call_calls_strict_tools_with_arguments_of_their_schema(
    client: httpx.AsyncClient,
) -> None:
    """What is said of the mark alone makes a random model call: it is drawn wherever the grammar lets it."""
    http: Any = client
    asking = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", http_client=http, max_retries=0)
    mark = (await client.post("/tokenize", json={"prompt": MARKS[0], "add_special_tokens": False})).json()["tokens"]
    num_calls, num_parsed, texts = 0, 0, set()
    for seed in range(NUM_CALLS):
        try:  # a call that `max_tokens` cuts is told as such
            answer = await asking.chat.completions.parse(
                model="tiny",
                messages=[{"role": "user", "content": "an animal"}],
                tools=[openai.pydantic_function_tool(Animal)],
                response_format=openai.omit if seed % 2 else Owner,
                parallel_tool_calls=seed % 3 == 0,
                logit_bias={str(mark[0]): (3, 100, -100)[seed % 3]},
                seed=seed,
                temperature=1.0,
                max_tokens=300,
            )
        except openai.LengthFinishReasonError:
            continue
        message = answer.choices[0].message
        texts.add(message.content)
        if message.content and seed % 2 == 0:
            assert isinstance(message.parsed, Owner)
            num_parsed += 1
        for call in message.tool_calls or []:
            assert isinstance(call.function.parsed_arguments, Animal)
            num_calls += 1
    assert num_calls >= NUM_CALLS / 5
    assert num_parsed
    assert len(texts) > 1  # some say something, too


async def test_responses_are_held_as_chats_are(client: httpx.AsyncClient) -> None:
    schema = {"type": "array", "items": {"enum": ["a\u00e9", 1, None]}, "minItems": 2, "maxItems": 4}
    held = {"format": {"type": "json_schema", "name": "list", "schema": schema, "strict": True}}
    body = {"model": "tiny", "input": "a list", "text": held, "seed": 1, "max_output_tokens": 60}
    whole = (await client.post("/v1/responses", json=body)).json()
    (part,) = whole["output"][0]["content"]
    assert whole["status"] == "completed"
    jsonschema.validate(json.loads(part["text"]), schema)
    last = (await client.post("/v1/responses", json={**body, "stream": True})).text.split("\n\n")[-2]
    streamed = json.loads(last.partition("data: ")[2])["response"]
    assert streamed["output"][0]["content"] == [part]
    tools = [{"type": "function", "name": name, "parameters": one, "strict": True} for name, one in PARAMETERS.items()]
    num_called = 0
    for seed in range(NUM_CALLS):
        asked = {"input": "go", "tools": tools, "tool_choice": "required", "seed": seed, "max_output_tokens": 300}
        answer = (await client.post("/v1/responses", json=asked)).json()
        if answer["status"] == "completed":
            assert {item["type"] for item in answer["output"]} == {"function_call"}
            for call in answer["output"]:
                jsonschema.validate(json.loads(call["arguments"]), PARAMETERS[call["name"]])
            num_called += 1
    assert num_called > NUM_CALLS / 2
