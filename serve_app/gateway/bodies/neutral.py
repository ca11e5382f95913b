"""Keys of OpenAI's API that change the answer in ways we cannot: taken at their neutral values, refused otherwise."""

import json
from collections.abc import Collection
from typing import Any

from serve_app.errors import RequestError

_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (None, True),
    "audio": (None,),
    "bad_words": (None, []),
    "best_of": (None,),  # and n: see below
    "chat_template": (None,),
    "documents": (None, []),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "length_penalty": (None, 1, 1.0),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "padding": (None, "do_not_pad"),
    "parallel_tool_calls": (None, False, True),
    "priority": (None, 0),
    "reasoning_effort": (None,),
    "spaces_between_special_tokens": (None, True),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "use_activation": (None, True),
    "use_beam_search": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}


def drop_neutral(raw: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """`raw` without keys that ask for nothing. `known` keys stay. Raises RequestError for the others."""
    kept: dict[str, Any] = {}
    for key, value in raw.items():
        if key in known or key not in _NEUTRAL_VALUES:
            kept[key] = value
        elif not _is_neutral(key, value, raw):
            allowed = " or ".join(json.dumps(neutral) for neutral in _NEUTRAL_VALUES[key])
            raise RequestError(f"{key} is not supported; leave it out or send {allowed}", field=key)
    return kept


def _is_neutral(key: str, value: object, raw: dict[str, Any]) -> bool:
    if key == "best_of" and type(value) is int and value == (raw.get("n") or 1):
        return True
    return any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL_VALUES[key])
