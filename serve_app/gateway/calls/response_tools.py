"""The tools of a Responses request as tools of a chat."""

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import ChosenFunction, FunctionDefinition, Tool, ToolChoice
from serve_app.gateway.bodies.responses import ChosenTool, FunctionTool, ResponsesBody

_ONLY_FUNCTIONS = "there are no built-in tools here"


def offered_tools(body: ResponsesBody) -> list[int]:
    """The places in `tools` of those that may be called."""
    tools = body.tools or []
    allowed = _allowed_names(body.tool_choice)
    return [index for index, tool in enumerate(tools) if allowed is None or tool.name in allowed]


def chat_tools(body: ResponsesBody) -> list[Tool] | None:
    """Those that may be called. Raises RequestError for any that is not a function."""
    if body.tools is None:
        return None
    tools = [_chat_tool(f"tools[{index}]", tool) for index, tool in enumerate(body.tools)]
    return [tools[index] for index in offered_tools(body)]


def chat_choice(body: ResponsesBody) -> str | ToolChoice | None:
    """Whether and what to call. Raises RequestError."""
    choice = body.tool_choice
    if not isinstance(choice, ChosenTool):
        return choice
    field = "tool_choice"
    if choice.type == "function":
        if choice.name is None:
            raise RequestError(f"{field}.name is missing", field=f"{field}.name")
        return ToolChoice(function=ChosenFunction(name=choice.name))
    if choice.type != "allowed_tools":
        raise RequestError(
            f"{field}.type={choice.type[:32]!r} is not taken: {_ONLY_FUNCTIONS}; send function or allowed_tools",
            field=f"{field}.type",
        )
    if choice.mode not in ("auto", "required"):
        shown = "is missing" if choice.mode is None else f"={choice.mode[:32]!r} is not known"
        raise RequestError(f"{field}.mode {shown}; send auto or required", field=f"{field}.mode")
    _check_allowed(choice, {tool.name for tool in body.tools or []})
    return choice.mode


def _check_allowed(choice: ChosenTool, names: set[str | None]) -> None:
    if not choice.tools:
        raise RequestError("tool_choice.tools is empty; name at least one tool", field="tool_choice.tools")
    for index, tool in enumerate(choice.tools):
        where = f"tool_choice.tools[{index}]"
        if tool.type != "function":
            raise RequestError(f"{where}.type={tool.type[:32]!r} is not known; send function", field=f"{where}.type")
        if tool.name not in names or tool.name is None:
            raise RequestError(f"{where}.name={(tool.name or '')[:80]!r} is not among the tools", field=f"{where}.name")


def _allowed_names(choice: str | ChosenTool | None) -> set[str | None] | None:
    """None: all."""
    if not isinstance(choice, ChosenTool) or choice.type != "allowed_tools":
        return None
    return {tool.name for tool in choice.tools or []}


def _chat_tool(where: str, tool: FunctionTool) -> Tool:
    if tool.type != "function":
        raise RequestError(
            f"{where}.type={tool.type[:64]!r} is not taken: {_ONLY_FUNCTIONS}; send tools of type function",
            field=f"{where}.type",
        )
    if tool.name is None:
        raise RequestError(f"{where}.name is missing", field=f"{where}.name")
    for name, is_asked, reason in (
        ("defer_loading", tool.defer_loading, "every tool is shown to the model at once"),
        ("async", tool.is_async, "an answer ends with its calls"),
        ("allowed_callers", tool.allowed_callers not in (None, ["direct"]), "the model alone calls"),
    ):
        if is_asked:
            raise RequestError(f"{where}.{name} is not supported: {reason}; leave it out", field=f"{where}.{name}")
    return Tool(
        function=FunctionDefinition(
            name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
        )
    )
