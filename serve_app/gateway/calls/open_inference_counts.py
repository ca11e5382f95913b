"""How often each model was called over the Open Inference Protocol, since this Gateway replica has started."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class CallCounts:
    """Of one model."""

    num_good: int = 0
    num_failed: int = 0
    good_ns: int = 0
    failed_ns: int = 0
    last_ms: int = 0  # Unix time of the last call's end


@dataclass(slots=True)
class InferenceCounts:
    """Of all models that were called, by name."""

    by_model: dict[str, CallCounts] = field(default_factory=dict)

    def of(self, model: str) -> CallCounts:
        """Zeros for a model that nobody has called."""
        return self.by_model.get(model, CallCounts())

    @contextmanager
    def counted(self, model: str) -> Iterator[None]:
        """Counts what runs inside as one call of a model that is served."""
        counts = self.by_model.setdefault(model, CallCounts())
        start_ns = time.perf_counter_ns()
        is_good = False
        try:
            yield
            is_good = True
        finally:
            spent_ns = time.perf_counter_ns() - start_ns
            counts.num_good += is_good
            counts.num_failed += not is_good
            counts.good_ns += spent_ns if is_good else 0
            counts.failed_ns += 0 if is_good else spent_ns
            counts.last_ms = time.time_ns() // 1_000_000
