"""Formats are chosen by a model's setting, or by what its chat template shows."""

from typing import get_args

import pytest

from serve_app.config.model import ReasoningParser, ToolParser
from serve_app.errors import ConfigError
from serve_app.preprocessing.answers.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    choose_reasoning_format,
    choose_tool_format,
    knows_tools,
)

SHOWN = "{%- if tools %}{{ tools | tojson }}{% endif %}"


def test_settings_name_what_there_is() -> None:
    for setting, formats in ((ToolParser, TOOL_FORMATS), (ReasoningParser, REASONING_FORMATS)):
        assert set(get_args(get_args(setting)[0])) == {"auto", "off", *formats}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (SHOWN, True),
        ("{% for tool in tools or [] %}{{ tool }}{% endfor %}", True),
        ("{{ '}}' if x else tools }}", True),
        ("{% for message in messages %}{{ message.content }} use tools {% endfor %}", False),
        ("{{ 'tools' }}{{ \"tools\" }}", False),
        ("{{ mytools }}", False),
        ("", False),
        (None, False),
    ],
)
def test_a_template_knows_tools_when_it_looks_at_them(template: str | None, expected: bool) -> None:
    assert knows_tools(template) is expected


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ("<tool_call>", "hermes"),
        ("<tool_call><function=name>", "qwen3_coder"),
        ("[TOOL_CALLS]", "mistral"),
        ("<|start_header_id|>", "llama3_json"),
        ("<|python_tag|>", "llama3_json"),
        ("", "json"),
    ],
)
def test_a_template_says_how_calls_are_written(marks: str, expected: str) -> None:
    assert choose_tool_format("auto", SHOWN + marks) == expected
    assert choose_tool_format("json", SHOWN + marks) == "json"
    assert choose_tool_format("off", SHOWN + marks) is None
    assert choose_tool_format("auto", marks) is None


def test_a_format_without_a_place_for_tools_is_refused() -> None:
    with pytest.raises(ConfigError, match="tool_parser=hermes: the model's chat template shows no tools") as caught:
        choose_tool_format("hermes", "{{ messages }}")
    assert caught.value.field == "tool_parser"


@pytest.mark.parametrize(
    ("setting", "template", "expected"),
    [
        ("auto", "a</think>b", "think"),
        ("auto", "[THINK][/THINK]", "mistral"),
        ("auto", "{{ messages }}", None),
        ("auto", None, None),
        ("off", "</think>", None),
        ("deepseek_r1", "</think>", "deepseek_r1"),
    ],
)
def test_a_template_says_how_reasoning_is_marked(setting: str, template: str | None, expected: str | None) -> None:
    assert choose_reasoning_format(setting, template) == expected
