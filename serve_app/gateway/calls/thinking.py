"""Whether a model is to reason before it answers: what its chat template has to be told for that."""

import re

from serve_app.errors import RequestError
from serve_app.gateway.calls.models import ServedModel

_SWITCHES = {  # variables of chat templates that turn reasoning on and off, and how they are read there
    "enable_thinking": re.compile(r"\benable_thinking\b"),
    "thinking": re.compile(r"\b(?:if|elif|not|and|or)\s+thinking\b(?!\s*[.\[(])|(?<![\w.])thinking\s+is\s"),
}
_EFFORT = "reasoning_effort"


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
    switch = next((switch for switch, pattern in _SWITCHES.items() if pattern.search(template)), None)
    if switch is not None:
        return {switch: asked}
    if asked:
        return {}  # it always does
    message = f"{shown}: the chat template of model={name} has no switch for its reasoning; leave it out"
    raise RequestError(message, field=field)
