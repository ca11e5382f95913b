"""A device's memory whose sizes a test sets."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class FakeMemory:
    """DeviceMemory of a device that holds weights; what is measured holds more, and takes more for a while."""

    total: int
    weights: int = 0
    kept: int = 0  # by what runs the steps, its KV cache among it
    passing: int = 0  # at the peak of a step
    others: int = 0  # of other processes
    calls: list[str] = field(default_factory=list)
    _num_releases_with_runner: int = 0

    def total_bytes(self) -> int:
        """See DeviceMemory."""
        return self.total

    def free_bytes(self) -> int:
        """See DeviceMemory."""
        return self.total - self.others - self.held_bytes()

    def held_bytes(self) -> int:
        """See DeviceMemory."""
        return self.weights + (self.kept if self._num_releases_with_runner else 0)

    def used_bytes(self) -> int:
        """See DeviceMemory."""
        return self.held_bytes()

    def start_peak(self) -> None:
        """What runs the steps is there; it goes between the next two calls of `release`."""
        self.calls.append("start_peak")
        self._num_releases_with_runner = 2

    def peak_bytes(self) -> int:
        """See DeviceMemory."""
        self.calls.append("peak")
        return self.held_bytes() + self.passing

    def release(self) -> None:
        """See DeviceMemory."""
        self.calls.append("release")
        self._num_releases_with_runner = max(0, self._num_releases_with_runner - 1)
