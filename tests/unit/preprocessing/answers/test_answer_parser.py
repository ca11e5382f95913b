"""Answers are taken apart in the same way however their text is cut."""

import json
import random
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.preprocessing.answers.answer_parser import AnswerFormat, AnswerParser
from serve_app.preprocessing.answers.calls_sink import OfferedTools
from serve_app.preprocessing.answers.formats import REASONING_FORMATS, TOOL_FORMATS
from serve_app.preprocessing.answers.parts import AnswerParts
from serve_app.preprocessing.answers.text_reader import MAX_HELD_CHARS

PARAMETERS: dict[str, dict[str, Any]] = {
    "add": {"properties": {"a": {"type": "integer"}, "b": {"type": ["number", "null"]}, "c": {"type": "array"}}},
    "say": {"properties": {"text": {"type": "string"}, "is_loud": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}},
}
SIMPLE = '{"name": "add", "arguments": {"a": 1}}'
ADD = ("add", '{"a": 1}')


@dataclass
class Taken:
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def take(
    pieces: list[str], tool_format: str | None, reasoning: str | None = None, *, is_parallel: bool = True, **more: Any
) -> Taken:
    numbers = count(1)
    tools = OfferedTools(PARAMETERS, is_parallel, lambda: f"id{next(numbers)}")
    parser = AnswerParser(
        AnswerFormat(
            TOOL_FORMATS[tool_format] if tool_format else None,
            tools if tool_format else None,
            REASONING_FORMATS[reasoning] if reasoning else None,
            **more,
        )
    )
    taken = Taken()
    for parts in [*map(parser.feed, pieces), parser.flush()]:
        taken.content += parts.content
        taken.reasoning += parts.reasoning
        for delta in parts.calls:
            if delta.name is not None and delta.id is not None:
                assert delta.index == len(taken.calls), "calls begin in their order"
                taken.calls.append((delta.name, delta.arguments))
                taken.ids.append(delta.id)
            else:
                assert delta.arguments, "a piece of nothing"
                name, arguments = taken.calls[delta.index]
                taken.calls[delta.index] = (name, arguments + delta.arguments)
    assert parser.has_calls is bool(taken.calls)
    return taken


CODER = "<tool_call>\n<function=say>\n<parameter=text>\n{}\n</parameter>\n</function>\n</tool_call>"
CALLS: list[tuple[str, str, str, list[tuple[str, str]]]] = [  # format, text, content, calls
    ("hermes", f"<tool_call>\n{SIMPLE}\n</tool_call>", "", [ADD]),
    ("hermes", f"Let me see.\n<tool_call>{SIMPLE}</tool_call>", "Let me see.", [ADD]),
    ("hermes", f"<tool_call>{SIMPLE}</tool_call>\n<tool_call>{SIMPLE}</tool_call>\n", "", [ADD, ADD]),
    ("hermes", f"<tool_call>\n{SIMPLE}\n{SIMPLE}\n</tool_call> so", " so", [ADD, ADD]),
    ("hermes", f"<tool_call>[{SIMPLE}, {SIMPLE}]</tool_call>", "", [ADD, ADD]),
    ("hermes", f"<tool_call>{SIMPLE}\n<tool_call>{SIMPLE}", "", [ADD, ADD]),
    ("hermes", f"<tool_call>{SIMPLE}}}</tool_call>", "}", [ADD]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", [ADD]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [ADD]),
    (
        "hermes",
        r'<tool_call>{"name": "say", "arguments": "{\"text\": \"\ud800\"}"}</tool_call>',
        "",
        [("say", '{"text": "\ufffd"}')],
    ),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", "{}")]),
    (
        "hermes",
        '<tool_call>{"type": "function", "name": "add", "parameters": {"a": 1}, "id": "x"}</tool_call>',
        "",
        [ADD],
    ),
    (
        "hermes",
        '<tool_call>{"name": "say", "arguments": {"text": "}]\\"</tool_call>{["}}</tool_call>',
        "",
        [("say", '{"text": "}]\\"</tool_call>{["}')],
    ),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": </tool_call>.', ".", [("add", '{"a": ')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>', "", [ADD]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1}, "x": ?', ', "x": ?', [ADD]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a', "", [("add", '{"a')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": "\\', "", [("add", '{"a": "\\')]),
    ("llama3_json", '{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
    ("llama3_json", f"<|python_tag|>{SIMPLE}; {SIMPLE}", "", [ADD, ADD]),
    ("llama3_json", f"\n\n{SIMPLE}\nDone; bye", "\nDone; bye", [ADD]),
    ("mistral", f"[TOOL_CALLS] [{SIMPLE}, {SIMPLE}]", "", [ADD, ADD]),
    ("mistral", 'Yes [TOOL_CALLS]add{"a": 1}[TOOL_CALLS]say{"text": ""}', "Yes", [ADD, ("say", '{"text": ""}')]),
    ("mistral", '[TOOL_CALLS]add[CALL_ID]abc123DEF[ARGS]{"a": 1}', "", [ADD]),
    ("json", f"```json\n{SIMPLE}\n```", "", [ADD]),
    ("json", f"[{SIMPLE}]", "", [ADD]),
    ("qwen3_coder", CODER.format("hi\nyou"), "", [("say", '{"text": "hi\\nyou"}')]),
    ("qwen3_coder", "a" + CODER.format('"\\<p>é\t'), "a", [("say", '{"text": "\\"\\\\<p>é\\t"}')]),
    (
        "qwen3_coder",
        "<tool_call><function=add><parameter=a>5</parameter><parameter=b>null</parameter><parameter=c>\n[1, 2]\n"
        "</parameter></function></tool_call><tool_call><function=say><parameter=is_loud>True</parameter></function>",
        "",
        [("add", '{"a": 5, "b": null, "c": [1, 2]}'), ("say", '{"is_loud": true}')],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=add>\n<parameter=a>\nfive\n<parameter=b>\nNaN\n</function>\n</tool_call>",
        "",
        [("add", '{"a": "five", "b": "NaN"}')],
    ),
    ("qwen3_coder", "<tool_call><function=add></function></tool_call>", "", [("add", "{}")]),
    ("qwen3_coder", "<tool_call><function=say><parameter=text>ab", "", [("say", '{"text": "ab"')]),
    ("qwen3_coder", "<tool_call><function=add>?", "?", [("add", "{}")]),
]
NO_CALLS = [
    ("hermes", "plain text, 1 < 2 <tool_cal"),
    ("hermes", "  \n<tool_call> is how I call.</tool_call> \n"),
    ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": 5}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add" "arguments": {}}</tool_call>'),
    ("hermes", "<tool_call>{name: add}</tool_call>"),
    ("hermes", '<tool_call>{"name": "ad'),
    ("hermes", SIMPLE),
    ("llama3_json", '{"name": "Ann", "age": 5}'),
    ("llama3_json", f"So: {SIMPLE}"),
    ("llama3_json", '<|python_tag|>brave_search.call(query="x")'),
    ("llama3_json", "[1, 2]\n"),
    ("mistral", "[TOOL_CALLS] [1]"),
    ("mistral", "[TOOL_CALLS]rm{}"),
    ("mistral", "[TOOL_CALLS]" + "a" * 100 + "{}"),
    ("json", "```json\n{}\n```"),
    ("json", '```python\nprint("a")\n```'),
    ("json", "  []"),
    ("qwen3_coder", "<tool_call><function=rm><parameter=a>1</parameter></function></tool_call>"),
    ("qwen3_coder", "<tool_call><function=ad\nd></function></tool_call>"),
    ("qwen3_coder", f"<tool_call>{SIMPLE}</tool_call>"),
]


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), CALLS)
def test_calls_are_told_from_content(tool_format: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in cuts_of(text):
        taken = take(pieces, tool_format)
        assert (taken.content, taken.calls) == (content, calls)


@pytest.mark.parametrize(("tool_format", "text"), NO_CALLS)
def test_what_is_not_a_call_of_an_offered_tool_is_content_to_the_letter(tool_format: str, text: str) -> None:
    for pieces in cuts_of(text):
        taken = take(pieces, tool_format)
        assert (taken.content, taken.calls) == (text, [])


def cuts_of(text: str) -> list[list[str]]:
    """Whole, by characters, and at some places."""
    chosen = random.Random(0)
    places = [sorted(chosen.sample(range(1, len(text)), min(4, len(text) - 1))) for _ in range(20)]
    cut = [[text[begin:end] for begin, end in pairwise([0, *some, len(text)])] for some in places]
    return [[text], list(text), *cut]


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "```json\n", "```"),
    *("<function=add>", "</function>", "<parameter=a>", "</parameter>", "[CALL_ID]", "[ARGS]", SIMPLE, "add", "{}"),
    *(
        '{"name": "add", "arguments": ',
        '"parameters"',
        '"name"',
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        ":",
        ",",
        ";",
        "<",
        "1",
    ),
    *(" ", "\n", "é", "\u2028", "\\ud800", "null", "x"),
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join),
    places=st.lists(st.integers(0, 200), max_size=8),
    tool_format=st.sampled_from([None, *TOOL_FORMATS]),
    reasoning=st.sampled_from([None, *REASONING_FORMATS]),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_any_cut_gives_the_same_parts(
    text: str, places: list[int], tool_format: str | None, reasoning: str | None, flags: tuple[bool, bool]
) -> None:
    def taken(pieces: list[str]) -> Taken:
        return take(pieces, tool_format, reasoning, is_parallel=flags[0], starts_in_reasoning=flags[1])

    cut = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    whole = taken([text])
    assert taken(list(text)) == whole
    assert taken([text[begin:end] for begin, end in pairwise(cut)]) == whole
    if not whole.calls and reasoning is None:
        assert whole.content == text
    for _name, arguments in whole.calls:
        assert arguments.startswith("{")


@pytest.mark.parametrize(
    ("reasoning", "text", "is_begun", "expected"),
    [
        ("think", "<think>\nwell\n</think>\n\nyes\n", False, ("well", "yes\n")),
        ("think", "\n<think></think>yes", False, ("", "yes")),
        ("think", "well</think>yes", True, ("well", "yes")),
        ("think", "<think>\nwell</think>yes", True, ("well", "yes")),
        ("think", "<think>well \n", False, ("well \n", "")),
        ("think", "I <think> not</think>", False, ("", "I <think> not</think>")),
        ("think", "well</think>yes", False, ("", "well</think>yes")),
        ("deepseek_r1", "well</think>yes", True, ("well", "yes")),
        ("mistral", "[THINK]well[/THINK]yes", False, ("well", "yes")),
    ],
)
def test_reasoning_is_told_from_content(reasoning: str, text: str, is_begun: bool, expected: tuple[str, str]) -> None:
    for tool_format in (None, "hermes", "json"):
        for pieces in cuts_of(text):
            taken = take(pieces, tool_format, reasoning, starts_in_reasoning=is_begun)
            assert (taken.reasoning, taken.content, taken.calls) == (*expected, [])


def test_calls_follow_reasoning_and_a_call_in_it_is_none() -> None:
    text = f"<think>I could <tool_call>{SIMPLE}</tool_call></think>\n\n<tool_call>{SIMPLE}</tool_call>"
    for pieces in cuts_of(text):
        taken = take(pieces, "hermes", "think")
        assert (taken.content, taken.calls) == ("", [ADD])
        assert taken.reasoning == f"I could <tool_call>{SIMPLE}</tool_call>"


def test_bare_calls_follow_reasoning() -> None:
    for pieces in cuts_of(f"<think>well</think>\n{SIMPLE}"):
        taken = take(pieces, "llama3_json", "think")
        assert (taken.reasoning, taken.content, taken.calls) == ("well", "", [ADD])


@pytest.mark.parametrize("tool_format", ["hermes", "mistral", "llama3_json", "json", "qwen3_coder"])
def test_an_answer_that_may_have_one_call_ends_with_it(tool_format: str) -> None:
    text = {
        "hermes": f"<tool_call>{SIMPLE}</tool_call><tool_call>{SIMPLE}</tool_call>and more",
        "mistral": f"[TOOL_CALLS][{SIMPLE},{SIMPLE}]and more",
        "qwen3_coder": "<tool_call><function=add><parameter=a>1</parameter></function></tool_call>" * 2,
    }.get(tool_format, f"{SIMPLE};{SIMPLE}")
    for pieces in cuts_of(text):
        taken = take(pieces, tool_format, is_parallel=False)
        assert (taken.content, taken.calls) == ("", [ADD])


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1'),
        ("mistral", '[TOOL_CALLS]add[ARGS]{"a": 1'),
        ("qwen3_coder", "<tool_call><function=add><parameter=a>1</parameter>"),
    ],
)
def test_a_call_that_breaks_off_is_not_all_that_was_wanted(tool_format: str, text: str) -> None:
    parser = AnswerParser(AnswerFormat(TOOL_FORMATS[tool_format], OfferedTools(PARAMETERS, is_parallel=False)))
    parser.feed(text)
    parser.flush()
    assert (parser.has_calls, parser.is_done) == (True, False)


def test_a_call_of_mistrals_may_have_an_id_of_its_own() -> None:
    assert take(['[TOOL_CALLS]add[CALL_ID]abc123DEF[ARGS]{"a": 1}'], "mistral").ids == ["abc123DEF"]


def test_ids_are_what_templates_take() -> None:
    assert len(TOOL_FORMATS["mistral"].new_id()) == 9
    assert TOOL_FORMATS["mistral"].new_id().isalnum()
    assert TOOL_FORMATS["hermes"].new_id() != TOOL_FORMATS["hermes"].new_id()


def test_arguments_are_handed_on_as_they_come() -> None:
    parser = AnswerParser(AnswerFormat(TOOL_FORMATS["hermes"], OfferedTools(PARAMETERS)))
    assert parser.feed('<tool_call>{"name": "say", ').calls == []
    begun = parser.feed('"arguments": {"te').calls
    assert [(delta.name, delta.arguments) for delta in begun] == [("say", ""), (None, '{"te')]
    assert [delta.arguments for delta in parser.feed('xt": "a').calls] == ['xt": "a']
    assert [delta.arguments for delta in parser.feed('b"}}').calls] == ['b"}']


@pytest.mark.parametrize("tool_format", ["hermes", "qwen3_coder"])
def test_a_megabyte_of_arguments_is_not_held(tool_format: str) -> None:
    value = "ab\\\\" * 250_000
    text = {
        "hermes": f'<tool_call>{{"name": "say", "arguments": {{"text": "{value}"}}}}</tool_call>',
        "qwen3_coder": CODER.format(value),
    }[tool_format]
    parser = AnswerParser(AnswerFormat(TOOL_FORMATS[tool_format], OfferedTools(PARAMETERS)))
    pieces: list[str] = []
    for start in range(0, len(text), 777):
        pieces += [delta.arguments for delta in parser.feed(text[start : start + 777]).calls]
        assert len(parser._reader.text) < 100, "nothing of it is kept"
    pieces += [delta.arguments for delta in parser.flush().calls]
    shown = value if tool_format == "qwen3_coder" else value.replace("\\\\", "\\")
    assert json.loads("".join(pieces)) == {"text": shown}


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"arguments": {"a": "' + "x" * MAX_HELD_CHARS + '"}, "name": "add"}</tool_call>',
        "<tool_call>" + " " * MAX_HELD_CHARS + SIMPLE,
        "<tool_call>" + '{"x": ' + "[" * MAX_HELD_CHARS,
        "<tool_call>{" + '"x": 1, ' * 10_000 + '"name": "add"}',
    ],
)
def test_what_would_have_to_be_held_too_long_is_content(text: str) -> None:
    for size in (len(text), 1000, 4097):
        taken = take([text[start : start + size] for start in range(0, len(text), size)], "hermes")
        assert (taken.content, taken.calls) == (text, [])


def test_many_blanks_are_shown_while_they_come() -> None:
    parser = AnswerParser(AnswerFormat(TOOL_FORMATS["hermes"], OfferedTools(PARAMETERS)))
    shown = "".join(parser.feed("\n").content for _ in range(5000))
    assert len(shown) > 3000
    assert shown + parser.flush().content == "\n" * 5000


def test_an_answer_that_can_have_no_more_parts_is_plain() -> None:
    parser = AnswerParser(AnswerFormat(reasoning=REASONING_FORMATS["think"]))
    assert (parser.feed("<think>a</think>").reasoning, parser.is_plain) == ("a", False)
    assert (parser.feed("b").content, parser.is_plain) == ("b", True)
    assert (parser.feed(" c ").content, parser.flush().content) == (" c ", "")


def test_marks_are_all_that_is_searched() -> None:
    given = AnswerFormat(TOOL_FORMATS["mistral"], OfferedTools(PARAMETERS), REASONING_FORMATS["mistral"])
    assert set(given.marks) == {"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]"}


@given(st.lists(st.integers(0, 80), max_size=6))
@settings(max_examples=50, deadline=None)
def test_content_and_calls_come_in_the_order_in_which_they_are_written(cuts: list[int]) -> None:
    text = f"a <tool_call>{SIMPLE}</tool_call> b <tool_call>{SIMPLE}</tool_call> c"
    parser = AnswerParser(AnswerFormat(TOOL_FORMATS["hermes"], OfferedTools(PARAMETERS)))
    places = [0, *sorted(cuts), len(text)]
    grown = AnswerParts()
    for start, end in pairwise(places):
        grown.add(parser.feed(text[start:end]))
    grown.add(parser.flush())
    shown = [one.strip() if isinstance(one, str) else one.name or "" for one in grown.in_order()]
    assert [one for one in shown if one] == ["a", "add", "b", "add", "c"]
    assert "".join(one for one in grown.in_order() if isinstance(one, str)) == grown.content
