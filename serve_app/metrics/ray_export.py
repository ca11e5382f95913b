"""The same metrics through Ray's exporter, under the same names with Ray's `ray_` before them.

All are handed over as gauges of what they stand at: some hundred numbers every few seconds, whatever the load. A
histogram of Ray's takes single observations, and its agent repeats them one by one, each at the middle of its bucket.
"""

import asyncio
import logging
from collections.abc import Callable

from ray.util.metrics import Gauge

from serve_app.metrics.readings import Reading, samples_of

logger = logging.getLogger(__name__)

EXPORT_INTERVAL_S = 5.0  # Ray's own is 10 s, and it forgets a gauge after two


class RayExport:
    """Hands the metrics of one process to Ray."""

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self._read = read
        self._gauges: dict[str, Gauge] = {}

    def export(self) -> None:
        """What they stand at."""
        for sample in samples_of(self._read()):
            gauge = self._gauges.get(sample.name)
            if gauge is None:
                gauge = Gauge(sample.name, sample.family.help, tuple(sample.labels))
                self._gauges[sample.name] = gauge
            gauge.set(sample.value, sample.labels)

    def start(self) -> asyncio.Task[None]:
        """Again and again, until the task is cancelled; should it fail, all else goes on without it."""
        task = asyncio.create_task(self._run())
        task.add_done_callback(_log_failure)
        return task

    async def _run(self) -> None:
        while True:
            self.export()
            await asyncio.sleep(EXPORT_INTERVAL_S)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("metrics are not told to Ray any more", exc_info=task.exception())
