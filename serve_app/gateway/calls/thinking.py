"""Whether a model is to reason before it answers: what its chat template has to be told for that."""

import re

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import ChatBody
from serve_app.gateway.calls.models import ServedModel
from serve_app.types.models import ModelDescription

_SWITCHES = {  # variables of chat templates that turn reasoning on and off, and how they are read there
    "enable_thinking": re.compile(r"\benable_thinking\b"),
    "thinking": re.compile(r"\b(?:if|elif|not|and|or)\s+thinking\b(?!\s*[.\[(])|(?<![\w.])thinking\s+is\s"),
}
_EFFORT = "reasoning_effort"


def reasoning_budget(body: ChatBody, model: ModelDescription, grammar: str | None) -> int | None:
    """How many tokens a chat's reasoning may take; None: as many as it does. Raises RequestError.

    grammar: what the answer is held to; behind a cut nothing would hold it.
    """
    budget, field = body.thinking_token_budget, "thinking_token_budget"
    if budget is None:
        return None
    if model.reasoning_parser is None:
        raise RequestError(f"{field}: model={model.name} writes no reasoning apart; leave it out", field=field)
    for name, is_set in (
        ("n", (body.n or 1) > 1),
        ("logprobs", bool(body.logprobs)),
        ("what the answer is held to (a format, strict tools, tool_choice)", grammar is not None),
    ):
        if is_set:
            message = f"{field} does not go with {name}, as a budget may cut an answer in two; leave one of them out"
            raise RequestError(message, field=field)
    return budget


def effort_variables(effort: str, template: str) -> dict[str, object]:
    """Variables of a chat template for `reasoning_effort`: `none` turns reasoning off where there is a switch."""
    switch = _switch_of(template) if effort == "none" else None
    return {_EFFORT: effort} if switch is None else {_EFFORT: effort, switch: False}


def thinking_variables(
    asked: bool | str | None, model: ServedModel, field: str, *, has_tools: bool
) -> dict[str, object]:
    """Variables of the chat template for an answer with or without reasoning, or with so much of it.

    Raises RequestError for what the model cannot do. asked: None is the model's own way; a text is an effort.
    """
    if asked is None:
        return {}
    shown = f"{field}={str(asked).lower() if isinstance(asked, bool) else asked[:32]}"
    name = model.description.name
    if model.description.reasoning_parser is None:
        if asked is False:
            return {}
        raise RequestError(f"{shown}: model={name} does not reason before it answers; leave it out", field=field)
    template = (model.tokenizer.tool_template if has_tools else model.tokenizer.chat_template) or ""
    if isinstance(asked, str):
        if _EFFORT not in template:
            message = f"{shown}: the chat template of model={name} knows no {_EFFORT}; send true, or leave it out"
            raise RequestError(message, field=field)
        return {_EFFORT: asked}
    switch = _switch_of(template)
    if switch is not None:
        return {switch: asked}
    if asked:
        return {}  # it always does
    message = f"{shown}: the chat template of model={name} has no switch for its reasoning; leave it out"
    raise RequestError(message, field=field)


def _switch_of(template: str) -> str | None:
    return next((switch for switch, pattern in _SWITCHES.items() if pattern.search(template)), None)
