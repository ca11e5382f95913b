"""What the parts of the GPU check have in common. No torch: the process that watches over them does without."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

# In the order in which they run, and the seconds after which one hangs: the dearest come last.
PART_LIMITS_S: dict[str, float] = {
    "parity": 90,
    "attention": 240,
    "graphs": 90,
    "long_prompt": 60,
    "sampler": 60,
    "quantized": 60,
    "faults": 60,
    "nccl": 60,
    "attention_speed": 90,
    "decode": 300,
}


class Row(Protocol):
    """One line of what a part finds; a dataclass, for gpu.json."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def problem(self) -> str | None:
        """What must hold and does not."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Note:
    """What a part has left out, and why."""

    note: str
    problem: None = None

    def __str__(self) -> str:
        return self.note


@dataclass(frozen=True, slots=True)
class Failed:
    """A line that could not be measured."""

    what: str
    error: str

    @property
    def problem(self) -> str:
        """The error is one."""
        return str(self)

    def __str__(self) -> str:
        return f"{self.what}: FAILED with {self.error}"


def row_or_failure(what: str, measure: Callable[[], Row], is_usable: Callable[[], bool]) -> Row:
    """What is measured, or how it failed; raises what was raised where the device is of no use any more."""
    try:
        return measure()
    except Exception as error:  # a kernel that cannot be compiled, too little memory: the next line is another's
        if not is_usable():
            raise
        return Failed(what, told(error))


def told(error: BaseException) -> str:
    """The kind of an error and what it says, in one line of bearable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MAX_ERROR_LETTERS]}"


Rows = Iterator[Row]

_MAX_ERROR_LETTERS = 400
