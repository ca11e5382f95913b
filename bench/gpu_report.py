"""What the GPU check has found so far: printed, and in gpu.json, as soon as it is known."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.gpu_messages import Begun, Ended, Found, Started

_OF_ONE_ROW = ("parity", "long_prompt", "nccl")  # whose key in gpu.json holds the row itself


@dataclass(slots=True)
class PartRecord:
    """How a part went."""

    elapsed_s: float = 0.0
    error: str | None = None  # that ended it
    problems: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Whether it ran to its end, and all that must hold does."""
        return self.error is None and not self.problems


class Report:
    """All parts, in the order in which they ran."""

    def __init__(self, path: Path | None) -> None:
        self.parts: dict[str, PartRecord] = {}
        self._path = path  # None: printed only
        self._facts: dict[str, object] = {}
        self._rows: dict[str, list[dict[str, object]]] = {}

    @property
    def is_ok(self) -> bool:
        """Whether all parts are."""
        return all(part.is_ok for part in self.parts.values())

    def begin(self, begun: Begun) -> None:
        """The device is there; it may be so again, in another process."""
        if not self._facts:
            self._say(begun.line)
        self._facts = begun.facts
        self._write()

    def start(self, started: Started) -> None:
        """A part runs from here on."""
        self._say(f"\n{started.part}")
        if started.header:
            self._say(started.header)
        self.parts[started.part] = PartRecord()
        self._rows[started.part] = []

    def find(self, part: str, found: Found) -> None:
        """A row of a part."""
        self._say(found.line)
        self._rows[part].append(found.record)
        if found.problem is not None:
            self._say(f"    DOES NOT HOLD: {found.problem}")
            self.parts[part].problems.append(found.problem)
        self._write()

    def end(self, part: str, ended: Ended) -> None:
        """A part is over, or could not run."""
        record = self.parts.setdefault(part, PartRecord())
        self._rows.setdefault(part, [])
        record.elapsed_s, record.error = ended.elapsed_s, ended.error
        self._say(f"{part} FAILED: {ended.error}" if ended.error else f"({ended.elapsed_s:.1f} s)")
        self._write()

    def say_verdict(self) -> None:
        """The last lines: what does not hold."""
        bad = {name: part for name, part in self.parts.items() if not part.is_ok}
        self._say(f"\n{len(self.parts) - len(bad)} of {len(self.parts)} parts hold")
        for name, part in bad.items():
            for text in [*part.problems, *([part.error] if part.error else [])]:
                self._say(f"{name}: {text}")

    def as_record(self) -> dict[str, object]:
        """What gpu.json holds."""
        rows: dict[str, object] = {
            name: next(iter(found), None) if name in _OF_ONE_ROW else found for name, found in self._rows.items()
        }
        return {**self._facts, **rows, "parts": {name: asdict(part) for name, part in self.parts.items()}}

    def _write(self) -> None:
        if self._path is not None:
            self._path.write_text(json.dumps(self.as_record(), indent=1))

    def _say(self, text: str) -> None:
        print(text, flush=True)
