"""One copy of a model, epoch after epoch: when a shard is lost, it is replaced, and the others begin anew with it."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from serve_app.deployments.bubble import BubbleMeter, mean_share, stage_bubbles
from serve_app.deployments.copy_work import CopyWork, GroupMaker, Load, ShardGroup, Signals
from serve_app.deployments.repair_times import RepairTimes
from serve_app.deployments.stage_times import StageTimes
from serve_app.deployments.step_loop import StepLoop
from serve_app.errors import RayshardError, ShardLostError, UnavailableError
from serve_app.metrics.families import STEPS
from serve_app.metrics.times import Times
from serve_app.types.models import CopyCounts, CopyState
from serve_app.types.plans import MeasuredBytes
from serve_app.types.shards import EngineLimits, ShardReport
from serve_app.wire.control_link import ControlServer

logger = logging.getLogger(__name__)

_MAX_FAILED_STARTS = 5
RETRY_S = 1.0  # after a first failed start; doubled after each
_LEAVE_AGAIN_S = 0.2
_READY_S = 60.0  # how long a request without queue_timeout_s waits for a rebuild


class ModelCopy:
    """Starts the shards, runs the step loop, and replaces a shard that dies or hangs.

    The others stay, with what they have loaded; when that fails all are started anew.

    make_group: makes the shards. on_lost: told when they are lost. on_ready: told when they run.
    """

    def __init__(
        self,
        work: CopyWork,
        make_group: GroupMaker,
        on_lost: Callable[[RayshardError], None],
        on_ready: Callable[[], None] = lambda: None,
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self.epoch = 0
        self.startup_s: float | None = None  # how long the first start took, loading included
        self._work = work
        self._make_group = make_group
        self._on_lost = on_lost
        self._on_ready = on_ready
        self._retry_s = retry_s
        self._loop: StepLoop | None = None
        self._group: ShardGroup | None = None
        self._control: ControlServer | None = None
        self._running: list[asyncio.Task[None]] = []
        self._repair: RepairTimes | None = None  # of the loss at hand
        self._state: Literal["ready", "rebuilding", "failed"] = "rebuilding"
        self._detail = "starting"
        self._is_ready = asyncio.Event()
        self._is_closed = False
        self._step_times = Times(STEPS.bounds_s)
        self._stage_times = StageTimes()
        self._bubble = BubbleMeter([shard.stage for shard in work.shards], time.monotonic())
        self._num_rebuilds = 0
        self._num_control_bytes = 0  # of epochs that are over

    async def start(self) -> None:
        """Bring the first group up; raises when that fails."""
        await self._start_group()

    async def supervise(self) -> None:
        """Watch over the groups, one after the other; returns only when no group can be started any more."""
        num_failed = 0
        while num_failed < _MAX_FAILED_STARTS:
            if self._state == "ready":
                error = await self._wait_for_loss()
                if self._is_closed:
                    return
                self._lose(error)
                await self._renew_group()
                if self._is_closed:
                    return
            try:
                await self._start_group()
                num_failed = 0
            except Exception as failure:  # Ray, zmq, the shards' own: whatever it is, the next start may work
                num_failed += 1
                self._detail = f"start {num_failed} failed: {failure}"
                logger.exception("shard group start failed model=%s attempt=%d", self._work.name, num_failed)
                await asyncio.sleep(self._retry_s * 2**num_failed)
        self._state = "failed"

    async def wait_until_ready(self, timeout_s: float | None) -> None:
        """Return when requests can be taken; raises UnavailableError when the shards are not up again in time."""
        if self.is_ready:
            return
        limit_s = _READY_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while not self.is_ready:
                    await self._is_ready.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"model {self._work.name} is {self._state} ({self._detail}), and was not ready within {limit_s:g} s; "
                "try again",
                retry_after_s=1.0,
            ) from error

    @property
    def is_ready(self) -> bool:
        """Whether the shards run."""
        return self._state == "ready"

    def wake(self) -> None:
        """The work's queue has changed."""
        if self._loop is not None:
            self._loop.wake()

    def state(self, replica_id: str) -> CopyState:
        """Health, and how full the copy is."""
        load = self._work.load() if self._state == "ready" else Load()
        bubbles = stage_bubbles(self._bubble.shares(), [shard.stage for shard in self._work.shards])
        return CopyState(
            replica_id=replica_id,
            state=self._state,
            detail=self._detail,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            num_free_blocks=load.num_free_blocks,
            num_blocks=load.num_blocks,
            num_prompt_tokens=load.num_prompt_tokens,
            num_cached_tokens=load.num_cached_tokens,
            counts=self._counts(),
            bubble=mean_share(bubbles),
            stage_bubbles=bubbles,
            waits_for=load.waits_for,
        )

    def measured(self, weights_of: Callable[[ShardReport], int]) -> list[MeasuredBytes | None]:
        """What each shard takes; None while it is being started. weights_of: bytes of the model that is asked for."""
        if self._group is None or self._loop is None or self._state != "ready":
            return [None] * len(self._work.shards)
        told = zip(self._group.reports, self._loop.memory_taken, strict=True)
        return [MeasuredBytes.of(weights_of(report), taken) for report, taken in told]

    def signals(self) -> Signals | None:
        """What the number of copies follows; None while the shards are not up."""
        return self._work.signals() if self.is_ready else None

    def close(self) -> None:
        """End the group for good."""
        self._is_closed = True
        self._end_group()

    def _counts(self) -> CopyCounts:
        now = 0 if self._control is None else self._control.num_sent_bytes
        return replace(
            self._work.counts(),
            num_rebuilds=self._num_rebuilds,
            steps=self._step_times.counts(),
            stage_busy_s=self._bubble.busy_s,
            stage_idle_s=self._bubble.idle_s,
            num_control_bytes=self._num_control_bytes + now,
            stages=self._stage_times.counts([shard.stage for shard in self._work.shards]),
        )

    async def _start_group(self) -> None:
        started = time.monotonic()
        self.epoch += 1
        load_s = self._work.config.timeouts.load_s
        if self._group is None:
            self._group = self._make_group(self._work)
        try:
            async with asyncio.timeout(load_s):
                await self._group.start()
                sizing_s = time.monotonic()
                limits = self._work.limits(self._group.reports)
                if limits is not None:
                    await self._group.allocate(limits)
                warming_s = time.monotonic()
                await self._start_loop(self._group, limits)
        except TimeoutError as error:
            self._end_group()
            raise UnavailableError(f"the model was not ready within timeouts.load_s={load_s:g}; raise it") from error
        except BaseException:
            self._end_group()
            raise
        self._state, self._detail = "ready", ""
        self._is_ready.set()
        ready_s = time.monotonic()
        if self.startup_s is None:
            self.startup_s = ready_s - started
        logger.info(
            "model copy ready model=%s epoch=%d shards=%d num_blocks=%d start_s=%.1f",
            self._work.name,
            self.epoch,
            len(self._work.shards),
            limits.num_blocks if limits is not None else 0,
            ready_s - started,
        )
        self._on_ready()
        self._group.stand_by()
        if self._repair is not None:
            self._repair.log(self._work.name, self.epoch, self._group.times, warming_s - sizing_s, ready_s - warming_s)
            self._repair = None

    async def _start_loop(self, group: ShardGroup, limits: EngineLimits | None) -> None:
        """Connect the shards and run something small through them, so that the first client finds all warm."""
        num_shards = len(self._work.shards)
        self._control = ControlServer(group.host, self.epoch, num_shards)
        timeouts = self._work.config.timeouts
        self._loop = StepLoop(
            self._work.scheduler(group.reports, limits),
            self._control,
            num_shards,
            self._work.take,
            self._step_times,
            self._bubble,
            self._stage_times,
            self._work.traces,
            self._work.grammars,
            heartbeat_s=timeouts.heartbeat_s,
            step_s=timeouts.collective_s + timeouts.heartbeat_s,
        )
        self._running = [
            asyncio.create_task(group.run(self._control.address)),
            asyncio.create_task(self._loop.run()),
        ]
        warm_up = asyncio.create_task(self._run_warm_up(self._loop))
        limit_s = timeouts.rendezvous_s + timeouts.collective_s
        await asyncio.wait([*self._running, warm_up], return_when=asyncio.FIRST_COMPLETED, timeout=limit_s)
        if not warm_up.done():
            warm_up.cancel()
            raise self._failure()
        await warm_up

    async def _run_warm_up(self, loop: StepLoop) -> None:
        await loop.wait_for_shards()
        await self._work.warm_up(loop)

    async def _wait_for_loss(self) -> RayshardError:
        await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return self._failure()

    def _failure(self) -> RayshardError:
        """Why the group's run has ended."""
        for task in self._running:
            error = task.exception() if task.done() and not task.cancelled() else None
            if isinstance(error, ShardLostError):
                return error
            if error is not None:
                return ShardLostError(f"a shard was lost: {type(error).__name__}: {_first_line(error)}")
        return ShardLostError("a shard ended its run without being asked to")

    def _lose(self, error: RayshardError) -> None:
        """Take the group out of service; what ran on it ends with the error."""
        self._state, self._detail = "rebuilding", error.message
        self._num_rebuilds += 1
        self._is_ready.clear()
        logger.error("shard group lost model=%s epoch=%d reason=%s", self._work.name, self.epoch, error.message)
        self._stop_running()
        self._on_lost(error)

    async def _renew_group(self) -> None:
        """Let the shards that live leave the group that has lost one."""
        group, control, loop = self._group, self._control, self._loop
        assert group is not None
        assert control is not None
        assert loop is not None
        self._repair = RepairTimes(noticed_s=loop.silent_s)
        began_s = time.monotonic()
        control.send_leave()
        telling = asyncio.create_task(self._tell_again(control))
        try:
            stay = await group.renew(loop.suspects)
        except Exception:  # Ray's, or of a process that has ended: all are started anew
            logger.exception("no shard stays model=%s epoch=%d", self._work.name, self.epoch)
            stay = False
        finally:
            telling.cancel()
        self._num_control_bytes += control.num_sent_bytes
        control.close()
        self._control = self._loop = None
        if not stay:
            self._end_group()
        self._repair.left_s = time.monotonic() - began_s

    async def _tell_again(self, control: ControlServer) -> None:
        """Tell the shards to leave until they have: one whose link was not up, or broke off, has not heard of it."""
        while True:
            await asyncio.sleep(_LEAVE_AGAIN_S)
            if self._control is not control:
                return
            control.send_leave()

    def _end_group(self) -> None:
        self._stop_running()
        if self._group is not None:
            self._group.kill()
            self._group = None
        if self._control is not None:
            self._num_control_bytes += self._control.num_sent_bytes
            self._control.close()
            self._control = None
        self._loop = None

    def _stop_running(self) -> None:
        for task in self._running:
            task.cancel()
        self._running = []
        self._bubble.lose(time.monotonic())
        self._work.lose_shards()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
