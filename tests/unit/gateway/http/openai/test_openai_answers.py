"""What answers of OpenAI's API hold, whole and streamed."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import processors

from tests.fakes import (
    BOS,
    END_OF_TURN,
    EOS,
    ScriptedBackend,
    byte_fallback_tokenizer,
    save_model_dir,
    say,
)
from tests.openai_calls import CHAT, COMPLETIONS, ask, chat_body, client_of, events, prompt_body


@pytest.mark.parametrize("num_merged", [1, 4, 100])
async def test_a_stop_string_ends_a_choice_and_counts_its_tokens(
    client: httpx.AsyncClient, backend: ScriptedBackend, num_merged: int
) -> None:
    backend.max_steps_in_chunk, backend.is_merged = num_merged, True
    backend.script = lambda _request, choice: backend.ids("xx|yy|zz" if choice else "one END two")
    body = prompt_body(stop=["END", "|z"], n=2, max_tokens=50, return_token_ids=True, logprobs=0)
    answer = await ask(client, COMPLETIONS, body)
    first, second = answer["choices"]
    assert (first["text"], first["finish_reason"], first["stop_reason"]) == ("one ", "stop", "END")
    assert (second["text"], second["finish_reason"], second["stop_reason"]) == ("xx|yy", "stop", "|z")
    assert first["token_ids"] == backend.ids("one END")
    assert answer["usage"]["completion_tokens"] == len(backend.ids("one END")) + len(backend.ids("xx|yy|z"))
    assert len(first["logprobs"]["tokens"]) == len(first["token_ids"])
    assert (backend.num_open, backend.num_aborted) == (0, num_merged < 100)


@pytest.mark.parametrize("is_merged", [False, True])
async def test_a_special_token_that_the_text_hides_is_a_stop_string_all_the_same(
    client: httpx.AsyncClient, backend: ScriptedBackend, is_merged: bool
) -> None:
    backend.max_steps_in_chunk, backend.is_merged = (50 if is_merged else 1), is_merged
    (end,) = backend.ids(END_OF_TURN)
    backend.script = say(*backend.ids("one"), end, *backend.ids("\ntwo"), backend.eos_token_id)
    for stop, text, reason in (
        (END_OF_TURN, "one", END_OF_TURN),
        ([f"{END_OF_TURN}\n", "two"], "one", f"{END_OF_TURN}\n"),
        (f"e{END_OF_TURN}", "on", f"e{END_OF_TURN}"),
        ("e\nt", "on", "e\nt"),
        (EOS, "one\ntwo", EOS),
        (BOS, "one\ntwo", None),
    ):
        for keys in ({}, {"skip_special_tokens": False}):
            choice = (await ask(client, COMPLETIONS, prompt_body(stop=stop, max_tokens=20, **keys)))["choices"][0]
            if not keys or END_OF_TURN in str(stop):
                assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", reason)
    shown = prompt_body(stop=END_OF_TURN, include_stop_str_in_output=True)
    assert (await ask(client, COMPLETIONS, shown))["choices"][0]["text"] == f"one{END_OF_TURN}"
    late = prompt_body(stop=END_OF_TURN, min_tokens=7, max_tokens=20)
    assert (await ask(client, COMPLETIONS, late))["choices"][0]["text"] == "one\ntwo"


async def test_a_stop_string_is_shown_when_asked_for(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("one END two"))
    answer = await ask(client, COMPLETIONS, prompt_body(stop="END", include_stop_str_in_output=True))
    assert answer["choices"][0]["text"] == "one END"


async def test_stop_strings_wait_for_min_tokens(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("a|b|c"))
    answer = await ask(client, COMPLETIONS, prompt_body(stop="|", min_tokens=3))
    assert answer["choices"][0]["text"] == "a|b"


@pytest.mark.parametrize("num_steps", [1, 7])
async def test_eos_is_counted_and_not_shown(
    client: httpx.AsyncClient, backend: ScriptedBackend, num_steps: int
) -> None:
    backend.max_steps_in_chunk = num_steps
    backend.script = say(*backend.ids("abc"), backend.eos_token_id, 64)
    for keys in ({}, {"skip_special_tokens": False}):
        answer = await ask(client, COMPLETIONS, prompt_body(**keys))
        choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("abc", "stop", None)
        assert answer["usage"]["completion_tokens"] == 4


async def test_a_stop_token_is_named(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(64, 65, 66)
    choice = (await ask(client, COMPLETIONS, prompt_body(stop_token_ids=[65])))["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "stop", 65)


async def test_echo_with_logprobs_holds_the_prompt(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    body = prompt_body(prompt=[64, 65, 66], echo=True, logprobs=1, max_tokens=2, n=2)
    for choice in (await ask(client, COMPLETIONS, body))["choices"]:
        assert choice["text"] == "abc" + ("bc" if choice["index"] else "ab")
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == list(choice["text"])
        assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
        assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
        assert logprobs["top_logprobs"][:2] == [None, {"b": -0.5}]
    assert backend.requests[-1].params.num_prompt_logprobs == 1


async def test_echo_and_logprobs_stream_to_the_same(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    body = prompt_body(prompt=[[64, 65, 66], [67]], echo=True, logprobs=2, max_tokens=4, n=2, return_token_ids=True)
    whole = (await ask(client, COMPLETIONS, body))["choices"]
    for num_steps, num_delayed in ((1, 0), (3, 0), (1, 2)):
        backend.max_steps_in_chunk, backend.prompt_logprobs_delay_steps = num_steps, num_delayed
        pieces = [event["choices"][0] for event in await events(client, COMPLETIONS, body)]
        for choice in whole:
            mine = [piece for piece in pieces if piece["index"] == choice["index"]]
            assert "".join(piece["text"] for piece in mine) == choice["text"]
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
                assert [entry for piece in mine for entry in piece["logprobs"][name]] == choice["logprobs"][name]
            assert [token for piece in mine for token in piece["token_ids"]] == choice["token_ids"]
            assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
            assert [piece["finish_reason"] for piece in mine][-1] == "length"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("keys", [{}, {"echo": True}, {"n": 2}, {"echo": True, "n": 2}])
async def test_an_answer_keeps_its_first_space_and_its_tokens_join_to_it(
    tmp_path: Path, keys: dict[str, Any], is_stream: bool
) -> None:
    core = byte_fallback_tokenizer()
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    backend = ScriptedBackend(save_model_dir(tmp_path, core))
    vocab = core.get_vocab()
    the, letter = vocab["\u2581the"], vocab["a"]
    emoji = [vocab[f"<0x{byte:02X}>"] for byte in "🙂".encode()]
    backend.script = say(the, the, letter, *emoji, vocab["\u2581"], vocab["\u2581"], the)
    prompt = "the thing is"
    prompt_text = prompt if "echo" in keys else ""
    async with client_of(backend) as client:
        for asked in ({"logprobs": 1}, {}):
            body = prompt_body(prompt=prompt, max_tokens=10, **keys, **asked)
            if is_stream:
                pieces = [event["choices"][0] for event in await events(client, COMPLETIONS, body)]
            else:
                pieces = (await ask(client, COMPLETIONS, body))["choices"]
            for index in range(keys.get("n", 1)):
                mine = [piece for piece in pieces if piece["index"] == index]
                text = "".join(piece["text"] for piece in mine)
                assert text == f"{prompt_text} the thea🙂   the"
                if asked:
                    tokens = [token for piece in mine for token in piece["logprobs"]["tokens"]]
                    offsets = [offset for piece in mine for offset in piece["logprobs"]["text_offset"]]
                    assert "".join(tokens) == text
                    assert all(text.startswith(token, at) for token, at in zip(tokens, offsets, strict=True))
                    tops = [top for piece in mine for top in piece["logprobs"]["top_logprobs"]]
                    assert all(top is None or token in top for token, top in zip(tokens, tops, strict=True))


async def test_prompt_logprobs_come_as_vllm_gives_them(client: httpx.AsyncClient) -> None:
    answer = await ask(client, COMPLETIONS, prompt_body(prompt=[64, 65], prompt_logprobs=2, max_tokens=1))
    assert answer["choices"][0]["prompt_logprobs"] == [
        None,
        {
            "65": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
            "66": {"logprob": -1.5, "rank": 2, "decoded_token": "c"},
        },
    ]
    chat = await ask(client, CHAT, chat_body(prompt_logprobs=0, max_tokens=1))
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


async def test_chat_logprobs_carry_bytes(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.script = say(*backend.ids("é"))
    answer = await ask(client, CHAT, chat_body(logprobs=True, top_logprobs=1, return_token_ids=True))
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "é", "refusal": None}
    assert [entry["bytes"] for entry in choice["logprobs"]["content"]] == [[0xC3], [0xA9]]
    assert [len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]] == [1, 1]
    assert choice["token_ids"] == backend.ids("é")
    assert answer["prompt_token_ids"] == backend.requests[-1].prompt_token_ids


async def test_tokens_of_log_probabilities_may_be_named_by_their_ids(client: httpx.AsyncClient) -> None:
    keys = {"max_tokens": 3, "return_tokens_as_token_ids": True, "return_token_ids": True}
    body = prompt_body(prompt=[64, 65], echo=True, logprobs=2, **keys)
    (choice,) = (await ask(client, COMPLETIONS, body))["choices"]
    token_ids = [64, 65, *choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in token_ids]
    top = choice["logprobs"]["top_logprobs"][-1]
    assert list(top) == [f"token_id:{token_ids[-1] + offset}" for offset in range(2)]
    (choice,) = (await ask(client, CHAT, chat_body(logprobs=True, top_logprobs=1, **keys)))["choices"]
    shown = choice["logprobs"]["content"]
    assert [one["token"] for one in shown] == [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    assert shown[0]["top_logprobs"][0]["token"] == shown[0]["token"]


async def test_a_chat_stream_begins_with_the_role_and_ends_with_usage(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.script = say(*backend.ids("a€\u2028b"), backend.eos_token_id)
    body = chat_body(stream_options={"include_usage": True})
    received = await events(client, CHAT, body)
    assert received[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["choices"][0]["delta"]["content"] for event in received[1:-2]] == ["a", "€", "\u2028", "b"]
    assert received[-2]["choices"][0]["finish_reason"] == "stop"
    assert all(event["usage"] is None for event in received[:-1])
    assert received[-1]["choices"] == []
    assert received[-1]["usage"]["completion_tokens"] == len(backend.ids("a€\u2028b")) + 1


async def test_usage_can_come_with_every_chunk(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    received = await events(client, COMPLETIONS, prompt_body(prompt=[64], max_tokens=3, stream_options=options))
    assert [event["usage"]["completion_tokens"] for event in received] == [1, 2, 3, 3]
    received = await events(client, CHAT, chat_body(max_tokens=3, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in received]
    assert (counts[0], counts[-2:], len(set(counts))) == (0, [3, 3], len(counts) - 1)
    assert all(one["usage"]["total_tokens"] == sum(list(one["usage"].values())[:2]) for one in received)
    only_continuous = {"include_usage": False, "continuous_usage_stats": True}
    received = await events(client, COMPLETIONS, prompt_body(max_tokens=3, stream_options=only_continuous))
    assert not any(event.get("usage") for event in received)


async def test_events_are_one_line_even_with_unicode_separators(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    text = "a\u2028b\u2029c\x85d\ne"
    backend.script = say(*backend.ids(text))
    response = await client.post(CHAT, json=chat_body(stream=True))
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text


@pytest.mark.parametrize("name", ["@text@", 'org/model "x"', "模型"])
async def test_a_model_may_have_any_name(client: httpx.AsyncClient, backend: ScriptedBackend, name: str) -> None:
    backend.name = name
    received = await events(client, COMPLETIONS, prompt_body(model=name, prompt=[64], max_tokens=3))
    assert [event["choices"][0]["text"] for event in received] == ["a", "a", "a"]
    assert {event["model"] for event in received} == {name}
    assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
