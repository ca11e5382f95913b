"""Mistakes in a Serve file, each as one message that names the setting, the value and the way out."""

import difflib
import re
from dataclasses import dataclass
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from serve_app.config.base import ConfigModel
from serve_app.planning.serve_options import ApplicationOptions


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a Serve file."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def problems_of(error: ValidationError, model: type[ConfigModel], where: str) -> list[Problem]:
    """The mistakes that pydantic found in the settings `model` at `where`."""
    return [_problem_of(details, model, where) for details in _joined(error.errors())]


def shown(value: object) -> str:
    """The value as a message shows it: short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _problem_of(details: ErrorDetails, model: type[ConfigModel], where: str) -> Problem:
    location = [part for part in details["loc"] if part != "[key]"]
    path = where
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    is_secret = bool(location) and re.search("password|secret|token$", str(location[-1])) is not None
    value = "the value" if is_secret else shown(details["input"])
    return Problem(path or "file", _message_of(details, model, value))


def _joined(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """One mistake for each place: of a size or name, pydantic says why it is not a number, and why it is not text."""
    joined: list[ErrorDetails] = []
    for details in errors:
        if details["loc"][-1:] == ("int",):
            joined.append({**details, "loc": details["loc"][:-1], "type": "int_or_str"})
        elif details["loc"][-1:] != ("str",) or not joined or joined[-1]["loc"] != details["loc"][:-1]:
            joined.append(details)
    return joined


def _message_of(details: ErrorDetails, model: type[ConfigModel], value: str) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return _unknown_setting(details["loc"], model)
        case "missing":
            return "missing; add it"
        case "value_error":
            return str(context["error"])
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{value} is not an integer; write digits without quotes or point"
        case "float_type" | "float_parsing":
            return f"{value} is not a number; write it without quotes"
        case "finite_number":
            return f"{value} is not finite; write a plain number"
        case "string_type":
            return f"{value} is not text; put it in quotes (YAML reads yes, no, on, off and bare numbers as values)"
        case "string_too_short":
            return f"{value} is empty; write a name"
        case "bool_type":
            return f"{value} is neither true nor false; write one of them without quotes"
        case "literal_error":
            return f"{value} is not known; use {context['expected']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{value} is not a group of settings; write `setting: value` lines below it"
        case "list_type":
            return f"{value} is not a list; write entries that begin with a dash"
        case "too_short":
            return f"{value} has no entry; write at least {context['min_length']}"
        case "too_long":
            return f"has {context['actual_length']} entries; use at most {context['max_length']}"
        case "invalid-json-value":
            return f"{value} cannot be an argument; write text, numbers, true, false, null, lists or groups of them"
        case "int_or_str":
            return f"{value} is neither a size nor the name of a varying one; write an integer or text"
        case "greater_than":
            return f"{value} is too small; use more than {context['gt']:g}"
        case "greater_than_equal":
            return f"{value} is too small; use {context['ge']:g} or more"
        case "less_than_equal":
            return f"{value} is too large; use {context['le']:g} or less"
    return f"{value}: {details['msg']}"


def _unknown_setting(location: tuple[int | str, ...], model: type[ConfigModel]) -> str:
    *groups, unknown = location
    known = _group_at(model, groups).model_fields
    if model is ApplicationOptions and unknown in ("host", "port"):
        return f"belongs to the whole file; write http_options.{unknown}"
    closest = difflib.get_close_matches(str(unknown), known, n=1)
    if closest:
        return f"unknown setting; did you mean {closest[0]}?"
    return f"unknown setting; remove it, or use one of {', '.join(known)}"


def _group_at(model: type[ConfigModel], groups: list[int | str]) -> type[ConfigModel]:
    """The settings that a location is in; list indexes and names of dict entries are stepped over."""
    for group in groups:
        if str(group) not in model.model_fields:
            continue
        annotation = model.model_fields[str(group)].annotation
        options = [annotation, *get_args(annotation), *(one for arg in get_args(annotation) for one in get_args(arg))]
        inner = [option for option in options if isinstance(option, type) and issubclass(option, ConfigModel)]
        model = inner[0] if inner else model
    return model
