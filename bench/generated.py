"""What a benchmark asks of an engine and gets back. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from serve_app.types.generation import TokenLogprobs


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One greedy request of a benchmark."""

    arrival_s: float  # after the benchmark's begin
    prompt_token_ids: list[int]
    num_outputs: int


@dataclass(frozen=True, slots=True)
class Generated:
    """The answer to a WorkItem, and when each of its tokens came (seconds after the benchmark's begin)."""

    token_ids: list[int]
    times_s: list[float]
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens of a whole run and what it took."""

    num_tokens: int
    elapsed_s: float  # from the first arrival to the last token
    cpu_s: float  # of all processes that served

    @property
    def tokens_per_s(self) -> float:
        """Output tokens in each second."""
        return self.num_tokens / self.elapsed_s


def steady_tokens_per_s(answers: Sequence[Generated]) -> float | None:
    """Tokens in each second while all sequences decode: after the last first token, until the first one ends.

    None when no two steps lie in between.
    """
    begin_s = max(answer.times_s[0] for answer in answers)
    end_s = min(answer.times_s[-1] for answer in answers)
    num_tokens = sum(begin_s < time_s <= end_s for answer in answers for time_s in answer.times_s)
    return num_tokens / (end_s - begin_s) if end_s > begin_s else None
