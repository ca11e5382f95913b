"""What an answer that may call can hold: tried with the grammar library's own matcher, and read by our parsers."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from serve_app.errors import ConfigError
from serve_app.preprocessing.answers.answer_parser import AnswerFormat, AnswerParser
from serve_app.preprocessing.answers.call_grammar import CallGrammar
from serve_app.preprocessing.answers.call_schema import calls_schema
from serve_app.preprocessing.answers.calls_sink import OfferedTools
from serve_app.preprocessing.answers.formats import REASONING_FORMATS, TOOL_FORMATS
from serve_app.preprocessing.grammar_limits import parser_limits
from serve_app.preprocessing.grammar_text import json_rule

SPECIAL = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "[THINK]",
    "[/THINK]",
)
SPECIAL_TOKENS = {text: 257 + index for index, text in enumerate(SPECIAL)}
PARAMETERS: dict[str, dict[str, Any]] = {
    "move": {
        "type": "object",
        "properties": {
            "to": {"$ref": "#/$defs/place"},
            "steps": {"type": "integer", "minimum": 1},
            "note": {"type": ["string", "null"]},
        },
        "required": ["to", "steps"],
        "additionalProperties": False,
        "$defs": {"place": {"type": "string", "enum": ["Köln", "here"]}},
    },
    "log": {"type": "object"},
}


class Bytes:
    """A vocabulary of bytes and special tokens."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = tuple(range(256, 257 + len(SPECIAL)))
    tokens = [*(bytes([value]) for value in range(256)), b"<eos>", *(b"<%d>" % index for index in range(len(SPECIAL)))]  # noqa: RUF012

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TOKENS = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=len(Bytes.tokens), eos_token=[256])


def token_ids(text: str, special: Mapping[str, int]) -> list[int]:
    ids: list[int] = []
    while text:
        mark = next((one for one in special if text.startswith(one)), None)
        ids += [special[mark]] if mark else text[0].encode()
        text = text[len(mark or text[0]) :]
    return ids


def is_held(grammar: CallGrammar, answer: str, special: Mapping[str, int]) -> bool:
    """Whether the answer can be written and end."""
    matcher = LLMatcher(TOKENS, grammar.text(special), log_level=0, limits=parser_limits())
    assert not matcher.is_error(), matcher.get_error()
    return all(matcher.consume_token(one) for one in token_ids(answer, special)) and matcher.is_accepting()


def read(grammar: CallGrammar, answer: str) -> tuple[str, list[tuple[str, Any]]]:
    """Its content and its calls."""
    reasoning = None if grammar.reasoning_format is None else REASONING_FORMATS[grammar.reasoning_format]
    offered = OfferedTools(grammar.parameters, grammar.is_parallel)
    parser = AnswerParser(AnswerFormat(TOOL_FORMATS[grammar.tool_format], offered, reasoning))
    calls: dict[int, list[str]] = {}
    content = ""
    for parts in (parser.feed(answer), parser.flush()):
        content += parts.content
        for call in parts.calls:
            name, arguments = calls.setdefault(call.index, ["", ""])
            calls[call.index] = [name + (call.name or ""), arguments + call.arguments]
    return content, [(name, json.loads(arguments)) for name, arguments in calls.values()]


GOOD = {"to": "Köln", "steps": 2}
BAD = {"to": "Bonn", "steps": 2}


def as_json(arguments: dict[str, Any], key: str = "arguments", name: str = "move") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def as_xml(arguments: dict[str, Any], name: str = "move") -> str:
    written = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<function={name}>\n{written}</function>"


def hermes(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


LLAMA_GOOD, LLAMA_BAD = as_json(GOOD, "parameters"), as_json(BAD, "parameters")
ARGS_GOOD, ARGS_BAD = (json.dumps(one, ensure_ascii=False) for one in (GOOD, BAD))
ONE_CALL = {
    "hermes": hermes(as_json(GOOD)),
    "qwen3_coder": hermes(as_xml(GOOD)),
    "llama3_json": LLAMA_GOOD,
    "mistral": f"[TOOL_CALLS][{as_json(GOOD)}]",
    "json": as_json(GOOD),
}
CASES = [
    ("hermes", hermes(as_json(GOOD)), "", 1),
    ("hermes", f"I go.\n{hermes(as_json(GOOD))}\n{hermes(as_json({'a': [1]}, name='log'))}", "I go.", 2),
    ("hermes", "no <tool_ call", "no <tool_ call", 0),
    ("hermes", hermes(as_json(BAD)), None, 0),
    ("hermes", hermes(as_json(GOOD, name="run")), None, 0),
    ("hermes", "<tool_call> it", None, 0),
    ("qwen3_coder", hermes(as_xml(GOOD)), "", 1),
    ("qwen3_coder", "so " + hermes(as_xml({**GOOD, "note": "a\n<b>"})), "so", 1),
    ("qwen3_coder", hermes(as_xml({"any": "thing", "x": 3}, "log")), "", 1),
    ("qwen3_coder", hermes(as_xml(BAD)), None, 0),
    ("qwen3_coder", hermes(as_xml({**GOOD, "steps": "two"})), None, 0),
    ("qwen3_coder", hermes(as_xml({"to": "here"})), None, 0),
    ("llama3_json", LLAMA_GOOD, "", 1),
    ("llama3_json", f"{LLAMA_GOOD}; {LLAMA_GOOD}", "", 2),
    ("llama3_json", f"<|python_tag|>{LLAMA_GOOD}", "", 1),
    ("llama3_json", "a text {", "a text {", 0),
    ("llama3_json", LLAMA_BAD, None, 0),
    ("llama3_json", ' {"a": 1}', None, 0),
    ("llama3_json", f"<|python_tag|>{LLAMA_BAD}", None, 0),
    ("mistral", f"[TOOL_CALLS][{as_json(GOOD)}, {as_json({}, name='log')}]", "", 2),
    ("mistral", f"[TOOL_CALLS][{as_json(BAD)}]", None, 0),
    ("json", as_json(GOOD), "", 1),
    ("json", f"```json\n{as_json(GOOD)}\n```", "", 1),
    ("json", "```python\n{}```", "```python\n{}```", 0),
    ("json", as_json(BAD), None, 0),
    ("json", "```json\n{}\n```", None, 0),
]


@pytest.mark.parametrize("special", [{}, SPECIAL_TOKENS], ids=["characters", "special tokens"])
@pytest.mark.parametrize(("tool_format", "answer", "content", "num_calls"), CASES)
def test_calls_are_as_their_schemas_say_and_texts_are_free(
    tool_format: str, answer: str, content: str | None, num_calls: int, special: Mapping[str, int]
) -> None:
    grammar = CallGrammar(tool_format, None, PARAMETERS)
    assert is_held(grammar, answer, special) is (content is not None)
    if content is not None:
        found, calls = read(grammar, answer)
        assert (found.strip(), len(calls)) == (content, num_calls)
        for name, arguments in calls:
            jsonschema.validate(arguments, PARAMETERS[name])


@pytest.mark.parametrize("special", [{}, SPECIAL_TOKENS], ids=["characters", "special tokens"])
@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize("tool_format", ONE_CALL)
def test_content_may_be_held_too(tool_format: str, is_parallel: bool, special: Mapping[str, int]) -> None:
    written = ONE_CALL[tool_format]
    content = json_rule({"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False})
    grammar = CallGrammar(tool_format, None, PARAMETERS, is_parallel=is_parallel, content=content)
    for answer, is_right in (
        (written, True),
        ('{"x": 3}', True),
        ("{}", True),
        ('{"x": "3"}', False),
        ("a text", False),
        (f"a text {written}", False),
        (f'{written}{{"x": 3}}', False),
        (written.replace("Köln", "Bonn"), False),
    ):
        assert is_held(grammar, answer, special) is is_right, answer


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (f"[TOOL_CALLS]move[ARGS]{ARGS_GOOD}", True),
        (f"yes[TOOL_CALLS]move[CALL_ID]abcdefghi[ARGS]{ARGS_GOOD}[TOOL_CALLS]log[ARGS]{{}}", True),
        (f"[TOOL_CALLS]move[ARGS]{ARGS_BAD}", False),
        (f"[TOOL_CALLS]run[ARGS]{ARGS_GOOD}", False),
        (f"[TOOL_CALLS]move{ARGS_GOOD}", False),
    ],
)
def test_mistrals_names_before_arguments(answer: str, is_right: bool) -> None:
    assert is_held(CallGrammar("mistral", None, PARAMETERS), answer, SPECIAL_TOKENS) is is_right


@pytest.mark.parametrize("tool_format", ONE_CALL)
@pytest.mark.parametrize("special", [{}, SPECIAL_TOKENS], ids=["characters", "special tokens"])
def test_one_call_may_be_all(tool_format: str, special: Mapping[str, int]) -> None:
    written = ONE_CALL[tool_format]
    grammar = CallGrammar(tool_format, None, PARAMETERS, is_parallel=False)
    assert is_held(grammar, written, special)
    assert not is_held(grammar, f"{written}{written}", special)
    assert is_held(grammar, "a text", special)


@pytest.mark.parametrize("special", [{}, SPECIAL_TOKENS], ids=["characters", "special tokens"])
@pytest.mark.parametrize(("tool_format", "call"), [("llama3_json", LLAMA_GOOD), ("hermes", hermes(as_json(GOOD)))])
@pytest.mark.parametrize(
    ("reasoning", "begin", "end"), [("think", "<think>", "</think>"), ("mistral", "[THINK]", "[/THINK]")]
)
def test_reasoning_may_come_first(
    special: Mapping[str, int], tool_format: str, call: str, reasoning: str, begin: str, end: str
) -> None:
    fresh = CallGrammar(tool_format, reasoning, PARAMETERS)
    begun = CallGrammar(tool_format, reasoning, PARAMETERS, starts_in_reasoning=True)
    for behind in (call, "a text", f"\n\n{call}"):
        assert is_held(fresh, f"{begin}is it {{?{end}{behind}", special)
        assert is_held(begun, f"is it {{?{end}{behind}", special)
        assert is_held(fresh, behind, special)
    assert is_held(fresh, f"{begin}it does not end", special)
    assert is_held(begun, "{ it does not end", special)
    wrong = call.replace("Köln", "Bonn")
    assert not is_held(fresh, f"{begin}is it {{?{end}{wrong}", special)
    assert not is_held(begun, f"is it {{?{end}{wrong}", special)
    assert not is_held(fresh, wrong, special)


@pytest.mark.parametrize("special", [{}, SPECIAL_TOKENS], ids=["characters", "special tokens"])
@pytest.mark.parametrize(
    ("reasoning", "begin", "end"), [("think", "<think>", "</think>"), ("mistral", "[THINK]", "[/THINK]")]
)
def test_calls_that_have_to_come_may_have_reasoning_before_them(
    special: Mapping[str, int], reasoning: str, begin: str, end: str
) -> None:
    forced = calls_schema(PARAMETERS)
    fresh = CallGrammar("json", reasoning, {}, forced=forced)
    begun = CallGrammar("json", reasoning, {}, forced=forced, starts_in_reasoning=True)
    assert fresh.schema() == forced
    calls = f"[{LLAMA_GOOD}]"
    for behind, is_right in ((calls, True), (f"\n\n{calls}", True), (f"[{LLAMA_BAD}]", False), ("a text", False)):
        assert is_held(fresh, f"{begin}which [one]?{end}{behind}", special) is is_right
        assert is_held(begun, f"which [one]?{end}{behind}", special) is is_right
    assert is_held(fresh, calls, special)
    for unended in (f"{begin}which one?", f"{begin}which one?{end}", "which one?"):
        assert not is_held(fresh, unended, special)
        assert not is_held(begun, unended.removeprefix(begin), special)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}, "a"),
        ({"type": "object", "properties": {"a": {}}}, "a"),
        ({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}}, "a"),
        ({"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}, "a"),
        ({"type": "object", "properties": {}, "required": ["b"]}, "b"),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "anyOf"),
    ],
)
def test_what_texts_as_they_stand_cannot_be_held_to_is_refused(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"f's .*{named}"):
        CallGrammar("qwen3_coder", None, {"f": schema}).text({})


def test_optional_arguments_and_definitions_of_the_xml_format() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "b": {"$ref": "#/$defs/b"},
            "c": {"const": 3},
        },
        "$defs": {"b": {"type": "object", "properties": {"d": {"$ref": "#/$defs/b"}}, "additionalProperties": False}},
    }
    grammar = CallGrammar("qwen3_coder", None, {"f": schema})
    for arguments, is_right in (({}, True), ({"b": '{"d": {}}'}, True), ({"c": 3}, True), ({"c": 4}, False)):
        assert is_held(grammar, hermes(as_xml(arguments, "f")), {}) is is_right, arguments
