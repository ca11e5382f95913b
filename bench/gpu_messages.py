"""What the process that measures tells the one that watches over it. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Begun:
    """The device is there."""

    line: str
    facts: dict[str, object]  # for gpu.json


@dataclass(frozen=True, slots=True)
class Started:
    """A part runs from here on."""

    part: str
    header: str  # of its table; "": none


@dataclass(frozen=True, slots=True)
class Found:
    """A row of the part that runs."""

    line: str
    record: dict[str, object]
    problem: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The part is over."""

    elapsed_s: float
    error: str | None  # that ended it


Message = Begun | Started | Found | Ended
