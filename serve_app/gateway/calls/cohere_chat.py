"""Cohere's `/v2/chat` by our own chat: its body becomes one of ours, its finish reasons are told of ours."""

import msgspec
from msgspec.structs import replace

from serve_app.errors import RequestError
from serve_app.gateway.bodies.cohere import CohereChatBody, CohereDocument, CohereFinish, CohereMessage, CoherePart
from serve_app.gateway.bodies.openai import ChatBody, ChatMessage, FunctionCall, Role, Tool, ToolCall
from serve_app.gateway.bodies.structured import JsonSchemaFormat, ResponseFormat
from serve_app.gateway.calls.field_names import fields_named
from serve_app.gateway.calls.generation import GenerationCall
from serve_app.gateway.calls.models import ServedModel, ServedModels
from serve_app.gateway.calls.reader import RequestReader
from serve_app.gateway.calls.thinking import thinking_variables
from serve_app.gateway.calls.thinking_budget import bounded
from serve_app.types.generation import FinishReason

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}
_CHOICES = {"REQUIRED": "required", "NONE": "none"}
_FIELDS = {
    "stop": "stop_sequences",
    "top_p": "p",
    "top_k": "k",
    "max_completion_tokens": "max_tokens",
    "response_format.json_schema.schema": "response_format.json_schema",
}


async def cohere_call(body: CohereChatBody, models: ServedModels, reader: RequestReader) -> GenerationCall:
    """The request that a body asks for. Raises RequestError in Cohere's words."""
    _refuse_what_is_not_there(body)
    model = await models.find(body.model)
    with fields_named(_FIELDS):
        call = await reader.chat(_chat_body(body, model), model, has_parts=True)
    return bounded(call, None if body.thinking is None else body.thinking.token_budget)


def finish_of(reason: FinishReason | None, stop_reason: int | str | None, *, has_calls: bool) -> CohereFinish:
    """Why an answer ended, in Cohere's words."""
    if has_calls:
        return "TOOL_CALL"
    if reason == "length":
        return "MAX_TOKENS"
    if reason == "stop":
        return "STOP_SEQUENCE" if isinstance(stop_reason, str) else "COMPLETE"
    return "ERROR"


def _refuse_what_is_not_there(body: CohereChatBody) -> None:
    if body.documents:
        message = "documents: no answer is grounded in documents here; put their texts into a message"
        raise RequestError(message, field="documents")
    mode = None if body.citation_options is None else body.citation_options.mode
    if mode not in (None, "OFF", "DISABLED"):
        field = "citation_options.mode"
        raise RequestError(f"{field}={mode}: answers have no citations here; send OFF, or leave it out", field=field)
    if body.safety_mode not in (None, "OFF"):
        raise RequestError(
            f"safety_mode={body.safety_mode}: no safety instruction is written into prompts here; write one into a "
            "message of the role system, and send OFF or leave it out",
            field="safety_mode",
        )


def _chat_body(body: CohereChatBody, model: ServedModel) -> ChatBody:
    has_tools = bool(body.tools) and body.tool_choice != "NONE"
    variables = thinking_variables(_thinking(body), model, "thinking.type", has_tools=has_tools)
    return ChatBody(
        model=body.model,
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)],
        stream=body.stream,
        tools=_tools(body),
        tool_choice=None if body.tool_choice is None else _CHOICES[body.tool_choice],
        response_format=_response_format(body),
        max_tokens=body.max_tokens,
        stop=body.stop_sequences,
        temperature=body.temperature,
        seed=body.seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        top_k=body.k,
        top_p=body.p,
        logprobs=body.logprobs,
        priority=body.priority,
        chat_template_kwargs=variables or None,
    )


def _tools(body: CohereChatBody) -> list[Tool] | None:
    """The tools, each strict where all are to be."""
    if body.tools is None or not body.strict_tools:
        return body.tools
    return [replace(tool, function=replace(tool.function, strict=True)) for tool in body.tools]


def _thinking(body: CohereChatBody) -> bool | None:
    given = body.thinking
    if given is None:
        return None
    if given.type not in ("enabled", "disabled"):
        message = f"thinking.type={given.type[:32]!r} is not known; send enabled or disabled"
        raise RequestError(message, field="thinking.type")
    if given.token_budget is not None:
        _check_budget(given.token_budget, given.type, body)
    return given.type == "enabled"


def _check_budget(num_tokens: int, kind: str, body: CohereChatBody) -> None:
    """Raises RequestError for what does not go with reasoning that may be cut: the answer is then made of two."""
    field = "thinking.token_budget"
    if kind != "enabled":
        raise RequestError(f"{field} is for type=enabled, not {kind}; leave it out", field=field)
    if body.max_tokens is not None and num_tokens >= body.max_tokens:
        message = f"{field}={num_tokens} leaves nothing of max_tokens={body.max_tokens}; send less"
        raise RequestError(message, field=field)
    for name, is_set in (
        ("response_format", body.response_format is not None and body.response_format.type != "text"),
        ("tool_choice=REQUIRED", body.tool_choice == "REQUIRED"),
        ("strict_tools", bool(body.strict_tools) and bool(body.tools)),
        ("logprobs", bool(body.logprobs)),
    ):
        if is_set:
            message = f"{field} does not go with {name}, as it may cut an answer in two; send one of them"
            raise RequestError(message, field=field)


def _response_format(body: CohereChatBody) -> ResponseFormat | None:
    given = body.response_format
    if given is None or (given.type == "text" and given.json_schema is None):
        return None
    if given.type != "json_object":
        field = "response_format.type" if given.type != "text" else "response_format.json_schema"
        what = f"={given.type[:32]!r} is not known; send text or" if given.type != "text" else " needs type"
        raise RequestError(f"{field}{what} json_object", field=field)
    if given.json_schema is None:
        return ResponseFormat(type="json_object")
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=given.json_schema))


def _message(message: CohereMessage, where: str) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        shown = f"{where}.role={message.role[:32]!r} is not known; send one of {', '.join(_ROLES)}"
        raise RequestError(shown, field=f"{where}.role")
    if role == "tool" and message.tool_call_id is None:
        raise RequestError(f"{where}.tool_call_id is missing", field=f"{where}.tool_call_id")
    parts = message.content if isinstance(message.content, list) else []
    texts: list[str] = []
    thoughts = [message.tool_plan] if message.tool_plan else []
    for index, part in enumerate(parts):
        text = _part(part, role, f"{where}.content[{index}]")
        (thoughts if part.type == "thinking" else texts).append(text)
    content = "\n".join(texts) if isinstance(message.content, list) else message.content
    calls = [
        ToolCall(function=FunctionCall(name=call.function.name, arguments=call.function.arguments), id=call.id)
        for call in message.tool_calls or []
    ]
    return ChatMessage(
        role=role,
        content=content,
        tool_call_id=message.tool_call_id,
        tool_calls=calls or None,
        reasoning_content="\n".join(thoughts) or None,
    )


def _part(part: CoherePart, role: Role, where: str) -> str:
    """The text of one part of a message."""
    allowed = {"assistant": ("text", "thinking"), "tool": ("text", "document")}.get(role, ("text",))
    if part.type not in allowed:
        message = (
            f"{where}.type={part.type[:32]!r} is not read in a message of the role {role}; send {' or '.join(allowed)}"
        )
        raise RequestError(message, field=f"{where}.type")
    if part.type == "document" and part.document is not None:
        return _document_text(part.document)
    text = part.thinking if part.type == "thinking" else part.text
    if text is None or part.type == "document":
        raise RequestError(f"{where}.{part.type} is missing", field=f"{where}.{part.type}")
    return text


def _document_text(document: CohereDocument | str) -> str:
    """A tool's document as the model reads it: its data, beside its id where it has one."""
    if isinstance(document, str):
        return document
    if document.id is not None:
        return msgspec.json.encode({"id": document.id, "data": document.data}).decode()
    return document.data if isinstance(document.data, str) else msgspec.json.encode(document.data).decode()
