"""Inputs that become tokens before a model that embeds or classifies is called: conversations, and bare texts."""

from typing import Any

from serve_app.backend.prompts import default_prompt
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
    """A body with `messages`, or whose texts get no special tokens, with token ids as `input`. Raises RequestError."""
    if "messages" not in given:
        return await _bare(plane, given) if given.get("add_special_tokens") is False else given
    if "input" in given:
        raise RequestError("input and messages are both given; send one", field="messages")
    chat = {name: given[name] for name in ("model", *_CHAT_KEYS) if name in given}
    body = convert_body({"add_generation_prompt": False, **chat}, TokenizeBody)
    model = await plane.models.with_tokenizer(plane.models.for_tasks(body.model, TASKS))
    if model.description.has_preprocessing:
        message = f"messages: model={model.description.name} has steps before it, which take texts; send input"
        raise RequestError(message, field="messages")
    text = await plane.prompts.chat_text(body, model)
    token_ids = await plane.prompts.encode(text, model.tokenizer, is_special_added=bool(body.add_special_tokens))
    rest = {name: value for name, value in given.items() if name not in _CHAT_KEYS}
    return {**rest, "input": [token_ids]}


async def _bare(plane: DataPlane, given: dict[str, Any]) -> dict[str, Any]:
    """A body whose texts are token ids, without the tokens that the tokenizer sets around them. Raises RequestError."""
    rest = {name: value for name, value in given.items() if name != "add_special_tokens"}
    texts = [given["input"]] if isinstance(given.get("input"), str) else given.get("input")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return rest
    name = given.get("model")
    model = await plane.models.with_tokenizer(plane.models.for_tasks(name if isinstance(name, str) else None, TASKS))
    description = model.description
    if description.has_preprocessing or default_prompt(description) or "text_pair" in given:
        message = f"add_special_tokens=false: model={description.name} needs texts here; leave it out"
        raise RequestError(message, field="add_special_tokens")
    token_ids = [await plane.prompts.encode(text, model.tokenizer, is_special_added=False) for text in texts]
    return {**rest, "input": token_ids}
