"""The rows of the fault table, how they are printed, and which of them may not fail."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

from tests.chaos.comparison import is_changed
from tests.chaos.event_stream import Answer

_HEADER = (
    "| fault | copies | open | failed | kinds | differs | longest pause | healthy after | all copies after | "
    "processes left | blocks held | note |"
)


@dataclass(frozen=True, slots=True)
class Row:
    """What one fault did. None: it was not seen in the row's time."""

    name: str
    num_copies: int
    must_not_fail: bool
    note: str = ""  # what else happened; why there is nothing to tell
    num_requests: int = 0
    num_open_at_fault: int = 0
    num_failed: int = 0
    failures: str = ""  # by kind
    num_changed: int = 0
    longest_pause_s: float | None = None
    healthy_s: float | None = None  # after the fault: eight requests in a row, and /health is 200
    all_copies_s: float | None = None  # after the fault: as many copies are ready as before
    num_processes_left: int | None = None
    num_blocks_held: int | None = None
    num_requests_held: int | None = None  # running or waiting although no client waits

    @property
    def is_broken(self) -> bool:
        """Whether a promise is broken: a request has failed or changed, the fault met no stream, a process stays."""
        has_failed = self.num_open_at_fault == 0 or self.num_failed > 0 or self.num_changed > 0
        return bool(self.num_processes_left) or (self.must_not_fail and has_failed)

    @property
    def is_clean(self) -> bool:
        """Whether the next fault may have the same cluster."""
        nothing_left = self.num_processes_left == self.num_blocks_held == self.num_requests_held == 0
        return nothing_left and self.healthy_s is not None and self.all_copies_s is not None


def kinds_of(answers: Iterable[Answer]) -> str:
    """The kinds of failures with their counts, the most frequent first."""
    counts = Counter(answer.failure for answer in answers if answer.failure is not None)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def count_changed(answers: Sequence[Answer], *undisturbed: Sequence[Answer]) -> int:
    """How many answers no undisturbed run gave, of one or more; the same chats may have gone round again."""
    rights = zip(*map(cycle, undisturbed), strict=True)
    return sum(all(is_changed(answer, right) for right in own) for answer, own in zip(answers, rights, strict=False))


def format_table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    rule = "| --- |" + " ---: |" * 3 + " --- |" + " ---: |" * 6 + " --- |"
    return "\n".join([_HEADER, rule, *map(_format_row, rows)])


def _format_row(row: Row) -> str:
    cells = [row.name, row.num_copies]
    if row.num_requests == 0:
        return _joined([*cells, *[""] * 9, row.note])
    held = "?" if row.num_blocks_held is None else str(row.num_blocks_held)
    if row.num_requests_held:
        held += f" by {row.num_requests_held}"
    return _joined(
        [
            *cells,
            row.num_open_at_fault,
            f"{row.num_failed} of {row.num_requests}",
            row.failures,
            row.num_changed,
            _seconds(row.longest_pause_s),
            _seconds(row.healthy_s),
            _seconds(row.all_copies_s),
            "?" if row.num_processes_left is None else row.num_processes_left,
            held,
            row.note,
        ]
    )


def _joined(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |".replace("|  |", "| |")


def _seconds(value_s: float | None) -> str:
    return "never" if value_s is None else f"{value_s:.1f} s"
