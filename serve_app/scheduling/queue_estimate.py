"""How long a newcomer will wait before it runs, from what is ahead of it and how long steps have taken.

Rather too short than too long: who is refused for it would surely have waited in vain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import QueueFullError
from serve_app.scheduling.making_way import gives_place
from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.scheduling.step_times import RecentMean, StepTimes
from serve_app.scheduling.waiting_queue import WaitingQueue


@dataclass(frozen=True, slots=True)
class Places:
    """What a scheduler has room for."""

    num_free: int  # sequences that can start at once
    num_stages: int
    budget_tokens: int  # of prompts in one step


class QueueRecord:
    """What is known of the steps and answers of one scheduler."""

    def __init__(self) -> None:
        self.steps = StepTimes()
        self._num_outputs = RecentMean()

    def take_end(self, num_outputs: int) -> None:
        """A sequence has come to its end, with so many tokens."""
        self._num_outputs.take(num_outputs)

    def wait_s(
        self, waiting: WaitingQueue, running: Sequence[TokenSequence], places: Places, owner: str, priority: int
    ) -> float:
        """Seconds until a newcomer starts; 0 before anything was measured.

        As many sequences have to end as there are too few places. Each of those that run gets a token in each round
        of steps; prompts come in between.
        """
        ahead = waiting.ahead_of(owner, priority)
        is_let_in = gives_place(running, owner, priority) is not None
        return self._start_s(ahead, running, places, 0 if is_let_in else len(ahead) + 1 - places.num_free)

    def backlog_s(self, waiting: WaitingQueue, running: Sequence[TokenSequence], places: Places) -> float:
        """Seconds until one behind all that waits would start, whoever has sent it; 0 before anything was measured."""
        ahead = list(waiting)
        return self._start_s(ahead, running, places, len(ahead) + 1 - places.num_free)

    def _start_s(
        self, ahead: Sequence[TokenSequence], running: Sequence[TokenSequence], places: Places, num_ends: int
    ) -> float:
        """num_ends: sequences that have to end before."""
        step_s = self.steps.decoding_s
        if step_s is None:
            return 0.0
        num_prompt_tokens = sum(max(0, one.num_unscheduled - 1) for one in (*running, *ahead))
        wait_s = num_prompt_tokens * self.steps.prompt_token_s + num_prompt_tokens // places.budget_tokens * step_s
        num_outputs = self._num_outputs.value
        num_beside = len(running) + min(places.num_free, len(ahead))  # that run when no place is left
        if num_ends > 0 and num_beside and num_outputs is not None:
            pool = (*running, *ahead)
            mean_outputs = sum(min(one.params.max_tokens, num_outputs) for one in pool) / len(pool)
            num_steps = min(places.num_stages, num_beside)  # of one round
            wait_s += num_ends * mean_outputs * num_steps * step_s / num_beside
        return wait_s


def refuse_late(wait_s: float, left_s: float) -> None:
    """Raises QueueFullError for a request whose time would pass before its turn."""
    if wait_s > left_s:
        message = f"the request needs about {_shown(wait_s)} s in the queue, and has {_shown(left_s)} s"
        raise QueueFullError(f"{message}; give it more time, or try again later", retry_after_s=wait_s - left_s)


def _shown(seconds: float) -> str:
    return f"{round(seconds, 1 if seconds >= 1 else 3):g}"
