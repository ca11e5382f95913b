"""What there is to know of a setting, read from its config model: type, unit, bounds, and the text below it."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from serve_app.config.base import ConfigModel, parse_bytes

_UNIT = re.compile(r"\s*\[([^\[\]]+)\]$")
_UNIT_OF_SUFFIX = {"_s": "seconds", "_bytes": "bytes", "_tokens": "tokens", "_threads": "threads"}
_PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", object: "what Serve takes"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a group."""

    name: str
    meaning: str  # whole sentences
    kind: str  # what may be written, in words
    unit: str | None  # of a number; None: of what has none
    bounds: str  # in words; empty: none
    is_required: bool
    default: Any  # of no meaning where it is required
    is_optional: bool  # null may be written
    group: type[ConfigModel] | None  # whose settings stand below it
    is_many: bool  # there may be several of that group

    @property
    def first_sentence(self) -> str:
        """What it is, in one sentence."""
        return re.split(r"(?<=\.)\s+(?=[A-Z])", self.meaning)[0]


def settings_of(model: type[ConfigModel]) -> list[Setting]:
    """All settings of a group, in the order of its fields."""
    texts = _texts_of(model)
    return [_setting(name, field, texts.get(name, "")) for name, field in model.model_fields.items()]


def _setting(name: str, field: FieldInfo, text: str) -> Setting:
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    groups = [one for one in _parts(annotation) if isinstance(one, type) and issubclass(one, ConfigModel)]
    unit = _UNIT.search(text)
    kind = _kind(annotation)
    return Setting(
        name=name,
        meaning=_UNIT.sub("", text),
        kind=kind,
        unit=unit[1] if unit else _derived_unit(name, kind),
        bounds=_bounds(annotation),
        is_required=field.is_required(),
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        is_optional=NoneType in _parts(annotation),
        group=groups[0] if groups else None,
        is_many=any(get_origin(one) in (list, dict) for one in _parts(annotation)),
    )


@cache
def _texts_of(model: type[ConfigModel]) -> dict[str, str]:
    """The text below each field, in the source: nothing that runs needs it, so pydantic is not asked to read it."""
    texts: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, ConfigModel):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for before, after in pairwise(tree.body):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(after, ast.Expr)
            ):
                texts[before.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return texts


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation and all that it is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for one in get_args(annotation):
            yield from _parts(one)


def _is_size(annotation: Any) -> bool:
    return any(isinstance(one, BeforeValidator) and one.func is parse_bytes for one in _parts(annotation))


def _derived_unit(name: str, kind: str) -> str | None:
    if kind.startswith("size"):
        return "bytes"
    if "number" not in kind and "integer" not in kind:
        return None
    return next((unit for suffix, unit in _UNIT_OF_SUFFIX.items() if name.endswith(suffix)), None)


def _kind(annotation: Any) -> str:
    """What may be written, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if _is_size(annotation):
        return "size" + (" or null" if NoneType in _parts(annotation) else "")
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"{_kind(arguments[1])} by name"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(one) for one in arguments))
    if annotation is NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        return "group"
    return _PLAIN.get(annotation, "any value of JSON")


def _bounds(annotation: Any) -> str:
    """The least and the most that pydantic lets pass, in words."""
    marks = [part for one in _parts(annotation) for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    found = (_bound(mark, is_whole=_is_whole(annotation)) for mark in marks)
    return ", ".join(dict.fromkeys(filter(None, found))).replace(", to ", " to ")


def _bound(mark: Any, *, is_whole: bool) -> str | None:
    """One bound in words; None for what is none."""
    match mark:
        case Gt(gt=least):
            return "from 1" if least == 0 and is_whole else f"above {_number(least)}"
        case Ge(ge=least):
            return f"from {_number(least)}"
        case Lt(lt=most):
            return f"below {_number(most)}"
        case Le(le=most):
            return f"to {_number(most)}"
        case MinLen(min_length=least):
            return "not empty" if least == 1 else f"at least {least} entries"
        case MaxLen(max_length=most):
            return f"at most {most} entries"
    return None


def _is_whole(annotation: Any) -> bool:
    return float not in _parts(annotation)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
