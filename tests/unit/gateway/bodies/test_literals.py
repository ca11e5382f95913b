"""Every field of every body that takes some values alone: another one is refused, and those are told."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import pytest
from msgspec import inspect

from serve_app.errors import RequestError
from serve_app.gateway import bodies
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.literals import literals_at

OTHER = "nonsense"
Steps = tuple[str | int, ...]  # names of fields; 0: the first of a list


def body_types() -> Iterator[type[msgspec.Struct]]:
    for found in pkgutil.iter_modules(bodies.__path__):
        module = importlib.import_module(f"{bodies.__name__}.{found.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__:
                yield value


def options(one: inspect.Type) -> list[inspect.Type]:
    if isinstance(one, inspect.Metadata):
        return options(one.type)
    return [part for each in one.types for part in options(each)] if isinstance(one, inspect.UnionType) else [one]


def literals(one: inspect.Type, steps: Steps = (), above: tuple[type, ...] = ()) -> Iterator[tuple[Steps, list[Any]]]:
    """Where they are, and their values."""
    for part in options(one):
        if isinstance(part, inspect.LiteralType):
            yield steps, list(part.values)
        elif isinstance(part, inspect.StructType) and part.cls not in above:
            for field in part.fields:
                yield from literals(field.type, (*steps, field.encode_name), (*above, part.cls))
        elif isinstance(part, inspect.CollectionType):
            yield from literals(part.item_type, (*steps, 0), above)


def example(one: inspect.Type, steps: Steps | None = None) -> Any:
    """A value of a type, with another one than it takes at the end of the steps, if there are any."""
    if steps == ():
        return OTHER
    for part in options(one):
        if isinstance(part, inspect.StructType):
            aim = steps[0] if steps else None
            if steps and aim not in [field.encode_name for field in part.fields]:
                continue
            tag = {} if part.tag_field is None else {part.tag_field: part.tag}
            return tag | {
                field.encode_name: example(field.type, steps[1:] if steps and field.encode_name == aim else None)
                for field in part.fields
                if field.required or field.encode_name == aim
            }
        if isinstance(part, inspect.CollectionType) and (steps is None or steps[0] == 0):
            return [example(part.item_type, None if steps is None else steps[1:])]
        if steps is None and isinstance(part, inspect.LiteralType):
            return part.values[0]
        if steps is None and isinstance(part, inspect.IntType | inspect.FloatType):
            return max(1, part.ge or 0)
        if steps is None and isinstance(part, inspect.DictType):
            return {}
    return "text"


CASES = [(body, *found) for body in body_types() for found in literals(inspect.type_info(body))]
IDS = [f"{body.__name__}.{'.'.join(map(str, steps))}" for body, steps, _values in CASES]


def test_there_are_such_fields() -> None:
    assert len(CASES) > 50


@pytest.mark.parametrize(("body", "steps", "values"), CASES, ids=IDS)
def test_another_value_is_refused_and_those_that_it_takes_are_told(
    body: type[msgspec.Struct], steps: Steps, values: list[Any]
) -> None:
    with pytest.raises(RequestError) as refused:
        convert_body(example(inspect.type_info(body), steps), body)
    told = refused.value.message
    assert f'"{OTHER}" cannot be used: expected ' in told
    if values == [False]:
        assert told.endswith("expected bool | null, got str")
    else:
        assert told.endswith(f"expected one of {', '.join(values)}")


def test_values_behind_keys_of_any_name_are_found() -> None:
    class Inner(msgspec.Struct):
        kind: Literal["a", "b"]

    class Outer(msgspec.Struct):
        by_name: dict[str, list[Inner] | None]
        pair: tuple[int, Literal["a", "b"]] | None = None

    assert literals_at(Outer, "$.by_name[...][3].kind") == ["a", "b"]
    assert literals_at(Outer, "$.pair[1]") == ["a", "b"]
    assert literals_at(Outer, "$.nowhere") == []
