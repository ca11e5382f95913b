"""Which values a field of a body may have, read off its type."""

import re
from collections.abc import Iterator
from functools import lru_cache

import msgspec
from msgspec import inspect

_STEP = re.compile(r"\.?([^.\[]+)|(\[[^\]]*\])")


def literals_at(body_type: type[msgspec.Struct], location: str) -> list[str]:
    """The values, as JSON shows them, of the field at a location of msgspec's: `$.messages[0].role`."""
    found = [_type_info(body_type)]
    for name, _index in _STEP.findall(location.removeprefix("$")):
        found = [part for one in found for part in (_fields(one, name) if name else _items(one))]
    literals = (part for one in found for part in _options(one) if isinstance(part, inspect.LiteralType))
    values = (value for literal in literals for value in literal.values)
    shown = (value if isinstance(value, str) else msgspec.json.encode(value).decode() for value in values)
    return list(dict.fromkeys(shown))


@lru_cache
def _type_info(body_type: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(body_type)


def _options(one: inspect.Type) -> Iterator[inspect.Type]:
    """The types that a value may have."""
    if isinstance(one, inspect.Metadata):
        yield from _options(one.type)
    elif isinstance(one, inspect.UnionType):
        for part in one.types:
            yield from _options(part)
    else:
        yield one


def _fields(one: inspect.Type, name: str) -> Iterator[inspect.Type]:
    for part in _options(one):
        if isinstance(part, inspect.StructType):
            yield from (field.type for field in part.fields if field.encode_name == name)


def _items(one: inspect.Type) -> Iterator[inspect.Type]:
    for part in _options(one):
        if isinstance(part, inspect.DictType):
            yield part.value_type
        elif isinstance(part, inspect.CollectionType):
            yield part.item_type
        elif isinstance(part, inspect.TupleType):
            yield from part.item_types
