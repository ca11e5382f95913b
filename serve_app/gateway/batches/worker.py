"""Claims batches and works them, as long as a Gateway replica takes requests."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import RayshardError
from serve_app.gateway.batches.batch_run import BatchRun
from serve_app.gateway.batches.batch_store import BatchStore, Claim, QueuedBatch
from serve_app.gateway.batches.batch_tools import BatchTools
from serve_app.gateway.batches.callers import OwnerGoneError
from serve_app.gateway.batches.file_store import DAY_S
from serve_app.gateway.batches.places import made_s
from serve_app.gateway.batches.sweep import sweep
from serve_app.observability import fault_text

logger = logging.getLogger(__name__)

MAX_RUNS = 16  # batches that one replica works at once
_SWEEP_S = 600.0
_AGAIN_S, _MAX_AGAIN_S = 30.0, 600.0  # until a batch is taken up again whose files could not be read or written


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A batch that is worked."""

    claim: Claim
    run: BatchRun
    task: asyncio.Task[None]


class BatchWorker:
    """Of one Gateway replica. Others on the same directory work what it does not."""

    def __init__(
        self, store: BatchStore, tools: BatchTools, is_draining: Callable[[], bool], *, poll_s: float = 2.0
    ) -> None:
        """poll_s: between looks for batches that other replicas have taken in, or left."""
        self._store = store
        self._tools = tools
        self._is_draining = is_draining
        self._poll_s = poll_s
        self._news = asyncio.Event()
        self._runs: dict[str, _UnderWay] = {}
        self._not_before_s: dict[str, float] = {}  # by batch
        self._times_laid_down: Counter[str] = Counter()  # by batch
        self._swept_s: float | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def num_left(self) -> int:
        """Requests of the batches that this replica works which have not ended."""
        return sum(one.run.num_left for one in self._runs.values())

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.create_task(self._work())

    def look_at(self, batch_id: str) -> None:
        """There is a new batch, or something has been asked of one."""
        if batch_id in self._runs:
            self._runs[batch_id].run.look()
        else:
            self._news.set()

    async def close(self) -> None:
        """Leave off; what is not written yet will be run again by whoever goes on."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._leave_off()

    async def _work(self) -> None:
        while True:
            self._news.clear()
            try:
                if self._is_draining():
                    await self._leave_off()
                else:
                    await self._claim_some()
                    await self._sweep()
            except Exception as error:  # such as a directory that is away for a while
                logger.error("batches cannot be looked for error=%s", fault_text(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._news.wait()

    async def _claim_some(self) -> None:
        """Take up batches, first those of owners of whom none is worked, then by age."""
        run, now_s = self._tools.threads.run, time.monotonic()
        waiting = [one for one in await run(self._store.queued) if self._is_free(one, now_s)]
        while waiting and len(self._runs) < MAX_RUNS:
            num_of = Counter(one.claim.owner for one in self._runs.values())
            first = min(waiting, key=lambda one: (num_of[one.owner], one.batch_id))
            waiting.remove(first)
            if self._tools.caller_of(first.owner) is None and not self._is_late(first):
                continue  # its key is gone, and may come back
            try:
                claim = await run(self._store.claim, first)
            except OSError as error:
                self._lay_down(first.batch_id, error)
                continue
            if claim is not None:
                self._begin(claim)

    def _lay_down(self, batch_id: str, error: BaseException) -> None:
        wait_s = min(_MAX_AGAIN_S, _AGAIN_S * 2.0 ** self._times_laid_down[batch_id])
        is_of_files = isinstance(error, OSError | RayshardError)  # which quotes no line of the batch
        reason = str(error) if is_of_files else fault_text(error)
        logger.error("batch laid down id=%s again_s=%.0f reason=%s", batch_id, wait_s, reason)
        self._times_laid_down[batch_id] += 1
        self._not_before_s[batch_id] = time.monotonic() + wait_s

    def _is_free(self, queued: QueuedBatch, now_s: float) -> bool:
        return queued.batch_id not in self._runs and self._not_before_s.get(queued.batch_id, 0.0) <= now_s

    def _is_late(self, queued: QueuedBatch) -> bool:
        return made_s(queued.batch_id) + DAY_S < self._tools.clock()

    def _begin(self, claim: Claim) -> None:
        run = BatchRun(claim, self._tools)
        self._runs[claim.batch_id] = _UnderWay(claim, run, asyncio.create_task(self._run_one(run, claim)))

    async def _run_one(self, run: BatchRun, claim: Claim) -> None:
        logger.info("batch taken up id=%s status=%s", claim.batch_id, claim.state.batch.status)
        self._not_before_s.pop(claim.batch_id, None)
        try:
            await run.run()
            del self._times_laid_down[claim.batch_id]
        except* OwnerGoneError:
            logger.info("batch laid down until its key is there again id=%s", claim.batch_id)
        except* Exception as error:  # of one batch: a full disk, a file that somebody has broken
            self._lay_down(claim.batch_id, error)
        finally:
            try:
                await asyncio.shield(self._tools.threads.run(claim.release))  # after whatever it still writes
            finally:
                del self._runs[claim.batch_id]
                self._news.set()

    async def _leave_off(self) -> None:
        under_way = list(self._runs.values())
        for one in under_way:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in under_way), return_exceptions=True)
        for one in under_way:
            await self._tools.threads.run(one.claim.release)  # of one that was cancelled on its way out, too

    async def _sweep(self) -> None:
        if self._swept_s is None or time.monotonic() - self._swept_s > _SWEEP_S:
            self._swept_s = time.monotonic()
            await self._tools.threads.run(sweep, self._tools.files, self._store, self._tools.config)
