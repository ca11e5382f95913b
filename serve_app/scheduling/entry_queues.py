"""Which entries go into the next step: by priority, then by turns of what can be joined.

As many as a step holds. No priority starves: while others wait, one of so many steps begins with the one among them
that has waited longest; and what room a step has left is filled with what can be joined, whatever its priority.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.scheduling.jobs import Entry, EntryQueue
from serve_app.scheduling.waiting_queue import TURNS


@dataclass(frozen=True, slots=True)
class StepSize:
    """How much one step holds."""

    max_rows: int
    max_tokens: int

    def is_half_full(self, entries: Sequence[Entry]) -> bool:
        """Whether a step of these is."""
        num_rows = sum(entry.sizes["batch"] for entry in entries)
        return 2 * num_rows >= self.max_rows or 2 * sum(entry.num_tokens for entry in entries) >= self.max_tokens

    def num_steps(self, queue: EntryQueue) -> float:
        """How many steps the entries of a queue fill."""
        return max(queue.num_rows / self.max_rows, queue.num_tokens / self.max_tokens)


class EntryQueues:
    """What waits."""

    def __init__(self, size: StepSize) -> None:
        self._size = size
        self._levels: dict[int, OrderedDict[object, EntryQueue]] = {}  # none is empty; served in turn
        self._num_arrived = 0
        self._num_passed = 0  # steps of the best priority while others waited, since one of those had its turn

    def __bool__(self) -> bool:
        return bool(self._levels)

    def __len__(self) -> int:
        return sum(len(queue.entries) for level in self._levels.values() for queue in level.values())

    def add(self, entry: Entry, key: object, *, is_first: bool = False) -> None:
        """An entry that can be joined with those of an equal key. is_first: before all of its priority."""
        priority = entry.job.request.priority
        level = self._levels.setdefault(priority, OrderedDict())
        queue = level.get(key)
        if queue is None:
            queue = level[key] = EntryQueue(priority, key)
        if is_first:
            level.move_to_end(key, last=False)
        else:
            entry.arrival, self._num_arrived = self._num_arrived, self._num_arrived + 1
        queue.add(entry, is_first=is_first)

    def next(self) -> EntryQueue | None:
        """Whose turn it is; its first entry is wanted. None: nothing waits."""
        while self._levels:
            queue = self._chosen()
            queue.drop_ended()
            if queue.entries:
                return queue
            self._forget(queue)
        return None

    def take(self, chosen: EntryQueue) -> list[Entry]:
        """As many entries as a step holds, of the queue whose turn it is and of those that can be joined with it."""
        is_best = chosen.priority == min(self._levels)
        self._num_passed = self._num_passed + 1 if is_best and len(self._levels) > 1 else 0
        taken: list[Entry] = []
        num_rows = num_tokens = 0
        for queue in self._joinable(chosen):
            queue.drop_ended()
            while queue.entries:
                entry = queue.entries[0]
                num_rows += entry.sizes["batch"]
                num_tokens += entry.num_tokens
                if taken and (num_rows > self._size.max_rows or num_tokens > self._size.max_tokens):
                    break
                taken.append(queue.take())
                queue.drop_ended()
            if queue is chosen:
                self._levels[queue.priority].move_to_end(queue.key)
            if queue.entries:
                break
            self._forget(queue)
        return taken

    def num_steps_ahead(self, priority: int, key: object) -> int:
        """Steps before that of a newcomer, at least: those of better priorities, then turns with those of its own."""
        before: dict[object, float] = {}  # steps that better priorities fill, by what can be joined
        for level, queues in self._levels.items():
            for queue in queues.values() if level < priority else ():
                before[queue.key] = before.get(queue.key, 0.0) + self._size.num_steps(queue)
        beside = self._levels.get(priority, OrderedDict())
        num_turns = int(before.get(key, 0.0) + self._size.num_steps(beside[key])) if key in beside else 0
        num_steps = sum(math.ceil(fill) for other, fill in before.items() if other != key)
        is_first = True  # so far none but those that come before the newcomer's own queue
        for queue in beside.values():
            if queue.key == key:
                is_first = False
                continue
            fill = before.get(queue.key, 0.0)
            num_more = math.ceil(fill + self._size.num_steps(queue)) - math.ceil(fill)
            num_steps += min(num_more, num_turns + is_first)
        return num_steps + max(num_turns, int(before.get(key, 0.0)))

    @property
    def num_steps(self) -> int:
        """Steps that all that waits fills."""
        queues = (queue for level in self._levels.values() for queue in level.values())
        return sum(math.ceil(self._size.num_steps(queue)) for queue in queues)

    def _chosen(self) -> EntryQueue:
        best, *others = sorted(self._levels)
        if others and self._num_passed >= TURNS - 1:
            heads = [next(iter(self._levels[level].values())) for level in others]
            return min(heads, key=lambda queue: queue.entries[0].arrival)
        return next(iter(self._levels[best].values()))

    def _joinable(self, chosen: EntryQueue) -> Iterator[EntryQueue]:
        yield chosen
        for priority in sorted(self._levels):
            queue = self._levels[priority].get(chosen.key) if priority in self._levels else None
            if queue is not None and queue is not chosen:
                yield queue

    def _forget(self, queue: EntryQueue) -> None:
        level = self._levels[queue.priority]
        del level[queue.key]
        if not level:
            del self._levels[queue.priority]
