"""Copies of one model under traffic, second after second, without Ray, a GPU or a clock, for bench/autoscale_sim.py.

A fluid model: numbers of requests are fractions, and each copy's are kept apart, because a request that waits at a copy
stays there. A new request goes to the copy that has the fewest, as the Gateway sends it. A copy decodes its sequences
in steps whose time grows with their number, and prompts take time from those. Output lengths are exponential.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MAX_PREFILL_SHARE = 0.6  # of a copy's time
_METER_S = 10.0  # over which a copy's tokens/s are measured, as in a Router
_GONE = 0.05  # requests that are left when a copy that drains is taken as done


@dataclass(frozen=True, slots=True)
class CopySpec:
    """One copy: a model of some 30 billion parameters on four GPUs, roughly."""

    num_gpus: int = 4
    max_num_seqs: int = 64
    step_s: float = 0.020  # that only decodes, with no sequence
    step_sequence_s: float = 0.0003  # what each sequence adds
    prompt_s: float = 0.025  # what a prompt takes
    num_prompt_tokens: float = 500.0
    num_output_tokens: float = 250.0  # on average
    kv_tokens: float = 60_000.0
    startup_s: float = 120.0

    @property
    def requests_per_s(self) -> float:
        """What a full copy can do."""
        full_step_s = self.step_s + self.step_sequence_s * self.max_num_seqs
        return 1 / (self.prompt_s + self.num_output_tokens * full_step_s / self.max_num_seqs)

    @property
    def tokens_per_s(self) -> float:
        """Prompts and outputs of a full copy."""
        return self.requests_per_s * (self.num_prompt_tokens + self.num_output_tokens)


@dataclass(slots=True)
class Outcome:
    """What a run has come to."""

    gpu_s: float = 0.0  # starting and draining copies cost as well
    num_requests: float = 0.0
    num_misses: float = 0.0  # first tokens later than the target

    @property
    def miss_share(self) -> float:
        """Of all requests."""
        return self.num_misses / self.num_requests if self.num_requests else 0.0


class Cluster:
    """The copies, and how they are filled. target_ttft_s: a later first token is a miss."""

    def __init__(self, spec: CopySpec, num_copies: int, target_ttft_s: float) -> None:
        self.spec = spec
        self.outcome = Outcome()
        self.tokens_per_s = np.zeros(num_copies)  # of each copy, of late
        self._target_ttft_s = target_ttft_s
        self._running = np.zeros(num_copies)
        self._waiting = np.zeros(num_copies)
        self._draining = np.zeros(0)  # requests of each copy that leaves
        self._ready_s: list[float] = []  # of copies that start
        self._held: list[list[float]] = []  # at the Gateway, without a copy: arrival, number

    @property
    def num_running(self) -> int:
        """Copies that take requests."""
        return len(self._running)

    @property
    def num_target(self) -> int:
        """With those that start."""
        return len(self._running) + len(self._ready_s)

    @property
    def num_requests(self) -> float:
        """That run or wait, those of draining copies left out."""
        return float(self._running.sum() + self._waiting.sum()) + sum(number for _arrival, number in self._held)

    def queue_delays_s(self) -> Floats:
        """Of a newcomer behind all that waits at each copy."""
        return self._waiting / self.spec.requests_per_s

    def kv_usages(self) -> Floats:
        """Shares of each copy's KV cache."""
        tokens = self.spec.num_prompt_tokens + self.spec.num_output_tokens / 2
        return self._running * tokens / self.spec.kv_tokens

    def capacity_usages(self) -> Floats:
        """Shares of each copy's tokens/s, or of its sequences."""
        return np.maximum(self.tokens_per_s / self.spec.tokens_per_s, self._running / self.spec.max_num_seqs)

    def scale(self, num_target: int, now_s: float) -> None:
        """Start copies, or let some leave: first those that have not started."""
        while self.num_target < num_target:
            self._ready_s.append(now_s + self.spec.startup_s)
        while self.num_target > num_target and self._ready_s:
            self._ready_s.pop()
        keep = min(num_target, self.num_running)
        leaving = self._running[keep:] + self._waiting[keep:]
        self._draining = np.concatenate([self._draining, leaving])
        self._resize(keep)

    def run_second(self, num_arrivals: float, now_s: float) -> None:
        """One second of traffic."""
        num_ready = sum(ready_s <= now_s for ready_s in self._ready_s)
        self._ready_s = [ready_s for ready_s in self._ready_s if ready_s > now_s]
        self._resize(self.num_running + num_ready)
        self.outcome.num_requests += num_arrivals
        if self.num_running:
            for arrived_s, number in self._held:
                self._take(number, now_s - arrived_s)
            self._held = []
            self._take(num_arrivals, 0.0)
            self._work()
        elif num_arrivals:
            self._held.append([now_s, num_arrivals])
        self._drain()
        num_copies = self.num_target + len(self._draining)
        self.outcome.gpu_s += num_copies * self.spec.num_gpus

    def _resize(self, num_copies: int) -> None:
        more = max(0, num_copies - self.num_running)
        for name in ("_running", "_waiting", "tokens_per_s"):
            setattr(self, name, np.concatenate([getattr(self, name)[:num_copies], np.zeros(more)]))

    def _take(self, number: float, waited_s: float) -> None:
        """Give requests to the copies that have the fewest, and count whose first token will be late."""
        new = _poured(self._running + self._waiting, number)
        left_s = self._target_ttft_s - waited_s - self.spec.prompt_s - self.spec.step_s
        if left_s <= 0:
            self.outcome.num_misses += number
        else:
            free = np.maximum(0.0, self.spec.max_num_seqs - self._running)
            in_time = free + self.spec.requests_per_s * left_s - self._waiting
            self.outcome.num_misses += float(np.clip(new - np.maximum(in_time, 0.0), 0.0, None).sum())
        self._waiting += new

    def _work(self) -> None:
        spec = self.spec
        free = np.maximum(0.0, spec.max_num_seqs - self._running)
        started = np.minimum(self._waiting, np.minimum(free, _MAX_PREFILL_SHARE / spec.prompt_s))
        self._waiting -= started
        self._running += started
        tokens = (1 - started * spec.prompt_s) / (spec.step_s + spec.step_sequence_s * self._running)
        ended = self._running * (1 - np.exp(-tokens / spec.num_output_tokens))
        done = started * spec.num_prompt_tokens + self._running * tokens
        self.tokens_per_s += (done - self.tokens_per_s) / _METER_S
        self._running -= ended
        # Places that become free within the second are taken within it.
        refill = np.minimum(self._waiting, np.minimum(ended, spec.requests_per_s))
        refill = np.where(started >= free, refill, 0.0)
        self._waiting -= refill
        self._running += refill

    def _drain(self) -> None:
        tokens = 1 / (self.spec.step_s + self.spec.step_sequence_s * np.minimum(self._draining, self.spec.max_num_seqs))
        left = self._draining * np.exp(-tokens / self.spec.num_output_tokens)
        self._draining = left[left > _GONE]


def _poured(levels: Floats, amount: float) -> Floats:
    """What each of some vessels gets when an amount is poured over all, the lowest level first."""
    ordered = np.sort(levels)
    needed = ordered * np.arange(1, len(ordered) + 1) - np.cumsum(ordered)  # to fill all before up to each
    count = int(np.searchsorted(needed, amount, side="right"))
    level = (amount + float(ordered[:count].sum())) / count
    poured: Floats = np.maximum(0.0, level - levels)
    return poured
