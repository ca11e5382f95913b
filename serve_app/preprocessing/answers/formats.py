"""How models write calls and reasoning into their answers, by the names that a model's YAML gives them."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.preprocessing.answers import mistral_calls
from serve_app.preprocessing.answers.calls_sink import CallsSink, long_id, short_id
from serve_app.preprocessing.answers.json_calls import read_json_calls
from serve_app.preprocessing.answers.mistral_calls import read_mistral_calls
from serve_app.preprocessing.answers.text_reader import Reading, TextReader
from serve_app.preprocessing.answers.xml_calls import read_xml_calls


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How calls stand in an answer."""

    read: Callable[[TextReader, CallsSink], Reading[None]]
    begins: tuple[str, ...] = ()  # what stands before calls, anywhere
    end: str | None = None  # what stands behind them
    is_bare: bool = False  # calls without anything before them may be an answer's beginning
    fence: tuple[str, str] | None = None  # what may stand around bare ones
    inner: tuple[str, ...] = ()  # other special tokens that it needs
    new_id: Callable[[], str] = long_id


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How reasoning stands at the beginning of an answer."""

    begin: str
    end: str
    is_implicit: bool = False  # an answer begins with it though `begin` is not written


TOOL_FORMATS = {
    "hermes": ToolFormat(read_json_calls, ("<tool_call>",), "</tool_call>"),
    "qwen3_coder": ToolFormat(read_xml_calls, ("<tool_call>",), "</tool_call>"),
    "llama3_json": ToolFormat(read_json_calls, ("<|python_tag|>",), is_bare=True),
    "mistral": ToolFormat(
        read_mistral_calls,
        ("[TOOL_CALLS]",),
        inner=(mistral_calls.CALL_ID, mistral_calls.ARGUMENTS),
        new_id=short_id,
    ),
    "json": ToolFormat(read_json_calls, is_bare=True, fence=("```json", "```")),
}
REASONING_FORMATS = {
    "think": ReasoningFormat("<think>", "</think>"),
    "deepseek_r1": ReasoningFormat("<think>", "</think>", is_implicit=True),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
}
_TOOL_MARKS = (  # of chat templates, the first that all are found decides
    ("qwen3_coder", ("<tool_call>", "<function=")),
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ("<|start_header_id|>",)),
)
_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
_BLOCK = re.compile(rf"\{{[%{{](?>{_QUOTED.pattern}|.)*?[%}}]\}}", re.DOTALL)
_TOOLS = re.compile(r"\btools\b")


def knows_tools(template: str | None) -> bool:
    """Whether a chat template has a place for tools."""
    blocks = _BLOCK.finditer(template or "")
    return any(_TOOLS.search(_QUOTED.sub("", block[0])) for block in blocks)


def choose_tool_format(setting: str, template: str | None) -> str | None:
    """The name of the format by a model's `tool_parser` and the chat template that is shown tools.

    None: requests cannot have tools. Raises ConfigError for a format where the template knows no tools.
    """
    if not knows_tools(template):
        if setting in TOOL_FORMATS:
            raise ConfigError(
                f"tool_parser={setting}: the model's chat template shows no tools; remove it, or give the model a "
                "template that does",
                field="tool_parser",
            )
        return None
    if setting != "auto":
        return setting if setting in TOOL_FORMATS else None
    known = template or ""
    return next((name for name, marks in _TOOL_MARKS if all(mark in known for mark in marks)), "json")


def choose_reasoning_format(setting: str, template: str | None) -> str | None:
    """The name of the format by a model's `reasoning_parser` and its chat template. None: none is looked for."""
    if setting != "auto":
        return setting if setting in REASONING_FORMATS else None
    return next((name for name in ("think", "mistral") if REASONING_FORMATS[name].end in (template or "")), None)
