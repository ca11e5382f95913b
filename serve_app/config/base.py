"""What all settings have in common."""

import re
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

_BYTE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(value: object) -> object:
    """Bytes of a size such as "256MiB" or "2GB"; what is not a text passes through unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]{1,3})", value)
    if match is None or match[2].upper() not in _BYTE_UNITS:
        raise ValueError(
            f"{value[:80]!r} is not a size; write a number of bytes, or one with a unit like 256MiB or 2GB"
        )
    return int(float(match[1]) * _BYTE_UNITS[match[2].upper()])


def parse_switch(value: object) -> object:
    """`off` as it is written: YAML reads it as false."""
    return "off" if value is False else value


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Switch = Annotated[Literal["auto", "off"], BeforeValidator(parse_switch)]


class ConfigModel(BaseModel):
    """Settings: frozen, strictly typed, unknown keys refused.

    Each has a text below it, from which `rayshard config` makes docs/configuration.md: its first sentence says what it
    is, and the unit stands in brackets at the end where the name does not tell it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
