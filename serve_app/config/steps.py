"""Steps on texts, before or after a model."""

from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue

from serve_app.config.base import ConfigModel


def _parse_step(value: object) -> object:
    """A step as `name`, or as `name: {argument: value}`."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1 and "name" not in value:
        ((name, arguments),) = value.items()
        return {"name": name, "arguments": {} if arguments is None else arguments}
    return value


class StepConfig(ConfigModel):
    """One step before or after a model: one of ours, or `package.module:Class` with its constructor's arguments."""

    name: str = Field(min_length=1)
    """One of docs/models.md, or package.module:Class."""
    arguments: dict[str, JsonValue] = {}
    """Of the step; written as `- name: {argument: value}`."""


Step = Annotated[StepConfig, BeforeValidator(_parse_step)]
