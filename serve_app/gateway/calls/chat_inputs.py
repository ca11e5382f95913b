"""Conversations for models that embed or classify: in the model's own template, as the tokens of one input."""

from typing import Any

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.openai import TokenizeBody
from serve_app.gateway.calls.data_plane import DataPlane

TASKS = ("embed", "classify", "score")
_CHAT_KEYS = (
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "add_special_tokens",
)


async def with_input(plane: DataPlane, given: dict[str, Any]) -> dict[str, Any]:
    """A body with `messages` as one with `input`; one without them as it is. Raises RequestError."""
    if "messages" not in given:
        return given
    if "input" in given:
        raise RequestError("input and messages are both given; send one", field="messages")
    chat = {name: given[name] for name in ("model", *_CHAT_KEYS) if name in given}
    body = convert_body({"add_generation_prompt": False, **chat}, TokenizeBody)
    model = await plane.models.with_tokenizer(plane.models.for_tasks(body.model, TASKS))
    if model.description.has_preprocessing:
        message = f"messages: model={model.description.name} has steps before it, which take texts; send input"
        raise RequestError(message, field="messages")
    text = await plane.reader.chat_text(body, model)
    token_ids = await plane.reader.encode(text, model.tokenizer, is_special_added=bool(body.add_special_tokens))
    rest = {name: value for name, value in given.items() if name not in _CHAT_KEYS}
    return {**rest, "input": [token_ids]}
