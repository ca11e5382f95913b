"""The tools of a chat request: what they must be, what chat templates are shown of them, how answers are read."""

import re
from typing import Any

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import ChatBody, Tool, ToolChoice
from serve_app.preprocessing.answers.answer_parser import AnswerFormat
from serve_app.preprocessing.answers.call_grammar import CallGrammar
from serve_app.preprocessing.answers.call_schema import calls_schema
from serve_app.preprocessing.answers.calls_sink import OfferedTools
from serve_app.preprocessing.answers.formats import REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat
from serve_app.types.models import ModelDescription

MAX_TOOLS = 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}}
_NO_ARGUMENTS: dict[str, object] = {**_NO_PARAMETERS, "additionalProperties": False}
_ANY_ARGUMENTS: dict[str, object] = {"type": "object"}
_CHOICES = ("none", "auto", "required")


def check_tools(body: ChatBody, model: ModelDescription) -> None:
    """Raises RequestError for tools that cannot be offered, or that this model takes none of."""
    tools = body.tools or []
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"tools has {len(tools)} entries; send at most {MAX_TOOLS}", field="tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        _check_tool(f"tools[{index}]", tool, names)
        names.add(tool.function.name)
    _check_choice(body.tool_choice, names)
    if not has_tools(body):
        return
    if model.tool_parser is None:
        raise RequestError(
            f"tools: model={model.name} takes none, as its chat template shows none or its tool_parser is off; leave "
            'them out, or send tool_choice: "none"',
            field="tools",
        )


def has_tools(body: ChatBody) -> bool:
    """Whether tools are offered to the model."""
    return bool(body.tools) and body.tool_choice != "none"


def shown_tools(body: ChatBody) -> list[dict[str, Any]] | None:
    """The tools as chat templates expect them; None: there are none."""
    return [_shown(tool) for tool in body.tools or []] if has_tools(body) else None


def forced_calls(body: ChatBody) -> dict[str, Any] | None:
    """The JSON schema of an answer that has to call; None: the model may choose. Of a checked body."""
    if not has_tools(body) or body.tool_choice in (None, "auto"):
        return None
    only = body.tool_choice.function.name if isinstance(body.tool_choice, ToolChoice) else None
    return calls_schema(_parameters(body), only=only, is_parallel=body.parallel_tool_calls is not False)


def held_calls(body: ChatBody, model: ModelDescription, prompt: str, *, is_content_held: bool) -> CallGrammar | None:
    """What calls are held to, and reasoning before them; None: to nothing, or to forced_calls alone.

    Of a checked body and its whole text.
    is_content_held: an answer without calls is held to something, so that calls have to be told from it.
    """
    if not has_tools(body):
        return None
    forced = forced_calls(body)
    reasoning = REASONING_FORMATS[model.reasoning_parser] if model.reasoning_parser else None
    starts_in_reasoning = reasoning is not None and _is_begun(reasoning, body, prompt)
    if forced is not None:
        if reasoning is None:
            return None
        return CallGrammar("json", model.reasoning_parser, {}, starts_in_reasoning=starts_in_reasoning, forced=forced)
    tools = [tool.function for tool in body.tools or []]
    if not is_content_held and not any(tool.strict for tool in tools):
        return None
    assert model.tool_parser is not None, "check_tools refuses others"
    held = {tool.name: (tool.parameters or _NO_ARGUMENTS) if tool.strict else _ANY_ARGUMENTS for tool in tools}
    return CallGrammar(
        model.tool_parser,
        model.reasoning_parser,
        held,
        is_parallel=body.parallel_tool_calls is not False,
        starts_in_reasoning=starts_in_reasoning,
    )


def answer_format(body: ChatBody, model: ModelDescription, prompt: str) -> AnswerFormat | None:
    """What the answer to a checked body may hold beside content; None: nothing. `prompt` is the whole text."""
    reasoning = REASONING_FORMATS[model.reasoning_parser] if model.reasoning_parser else None
    if not has_tools(body):
        if reasoning is None:
            return None
        return AnswerFormat(reasoning=reasoning, starts_in_reasoning=_is_begun(reasoning, body, prompt))
    assert model.tool_parser is not None, "check_tools refuses others"
    tool_format = TOOL_FORMATS[model.tool_parser]
    offered = OfferedTools(_parameters(body), body.parallel_tool_calls is not False, tool_format.new_id)
    return AnswerFormat(
        TOOL_FORMATS["json"] if forced_calls(body) is not None else tool_format,  # behind reasoning nothing but calls
        offered,
        reasoning,
        starts_in_reasoning=reasoning is not None and _is_begun(reasoning, body, prompt),
    )


def _parameters(body: ChatBody) -> dict[str, dict[str, Any]]:
    return {tool.function.name: tool.function.parameters or _NO_PARAMETERS for tool in body.tools or []}


def _check_tool(where: str, tool: Tool, names: set[str]) -> None:
    if tool.type != "function":
        raise RequestError(f"{where}.type={tool.type[:32]!r} is not known; send function", field=f"{where}.type")
    name = tool.function.name
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.function.name={name[:80]!r} is not a tool's name; use 1 to 64 letters, digits, '_' and '-'",
            field=f"{where}.function.name",
        )
    if name in names:
        raise RequestError(
            f"{where}.function.name={name!r} is given twice; give each tool its own", field=f"{where}.function.name"
        )
    kind = (tool.function.parameters or _NO_PARAMETERS).get("type", "object")
    if kind != "object":
        raise RequestError(
            f"{where}.function.parameters: its type is not object, and arguments are named; send a schema of an object",
            field=f"{where}.function.parameters",
        )


def _check_choice(choice: str | ToolChoice | None, names: set[str]) -> None:
    field = "tool_choice"
    if isinstance(choice, str) and choice not in _CHOICES:
        raise RequestError(
            f"{field}={choice[:64]!r} is not known; send {', '.join(_CHOICES)}, or an object that names a function",
            field=field,
        )
    if isinstance(choice, ToolChoice) and choice.type != "function":
        raise RequestError(f"{field}.type={choice.type[:32]!r} is not known; send function", field=f"{field}.type")
    if not names and (choice == "required" or isinstance(choice, ToolChoice)):
        raise RequestError(f"{field} needs tools, and there are none; send some, or leave it out", field=field)
    if isinstance(choice, ToolChoice) and choice.function.name not in names:
        raise RequestError(
            f"{field}.function.name={choice.function.name[:80]!r} is not among the tools; send one of "
            f"{list(names)[:16]}",
            field=f"{field}.function.name",
        )


def _shown(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    return {"type": "function", "function": {**function, "parameters": tool.function.parameters or _NO_PARAMETERS}}


def _is_begun(reasoning: ReasoningFormat, body: ChatBody, prompt: str) -> bool:
    """Whether an answer goes on in the middle of its reasoning."""
    ending = prompt.rstrip()
    if ending.endswith(reasoning.begin):
        return True
    if body.continue_final_message:
        last = prompt.rfind(reasoning.begin)
        return last > prompt.rfind(reasoning.end) and last >= 0 and body.messages[-1].role == "assistant"
    return reasoning.is_implicit and not ending.endswith(reasoning.end)
