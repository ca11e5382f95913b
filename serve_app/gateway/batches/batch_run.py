"""Works one batch from wherever it stands on disk to its end."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from pathlib import Path

from msgspec.structs import replace

from serve_app.errors import NotFoundError, RequestError, UnavailableError
from serve_app.gateway.batches.batch_store import BatchState, Claim
from serve_app.gateway.batches.batch_tools import BatchTools
from serve_app.gateway.batches.callers import BatchCaller, OwnerGoneError
from serve_app.gateway.batches.input_lines import InputLines
from serve_app.gateway.batches.line_calls import (
    LineAnswer,
    LineRequest,
    answered,
    refused,
    requests_left,
    wait_before,
)
from serve_app.gateway.batches.result_writer import ResultWriter
from serve_app.gateway.batches.results import Progress, ResultFiles
from serve_app.gateway.batches.validation import FileCheck
from serve_app.gateway.bodies.batches import BatchErrors, BatchLineError, BatchStatus

logger = logging.getLogger(__name__)

_EXPIRED = "this request could not be run before the batch's completion window ended"
_GONE_S = 600.0  # a model that was there when the file was checked may be on its way back, as after a restart
_GONE_WAIT_S = 5.0
_YIELD_S = 0.5  # between looks whether requests that somebody waits for still wait


@dataclass(slots=True)
class _Lines:
    """The requests of a batch while they are run."""

    progress: Progress = field(default_factory=Progress)
    gone_since_s: float | None = None  # the model was not there at the last attempt, for the first time then
    resume_s: float = 0.0  # none begins before, for one was told to wait


class BatchRun:
    """One claimed batch."""

    def __init__(self, claim: Claim, tools: BatchTools) -> None:
        self._claim = claim
        self._tools = tools
        self._run = tools.threads.run
        self._lines = _Lines()
        self._news = asyncio.Event()
        self._places = asyncio.Semaphore(tools.config.concurrency)
        files, owner, state = tools.files.places, claim.owner, claim.state
        self._output, self._errors = files.file(owner, state.output_id), files.file(owner, state.error_id)

    @property
    def num_left(self) -> int:
        """Requests that have not ended."""
        progress = self._lines.progress
        return self._claim.state.batch.request_counts.total - progress.num_completed - progress.num_failed

    async def run(self) -> None:
        """To the end. However it is left before, it can go on from what is on disk. Raises OSError, OwnerGoneError."""
        if self._status in ("validating", "in_progress"):
            ends_as = await self._watched(self._check_and_answer())
            if self._claim.state.batch.failed_at is not None:
                return
            if ends_as == "cancelled":
                await self._turn_to("cancelling", "cancelling_at", ends_as="cancelled")
            else:
                await self._expire_rest(ends_as)
                await self._turn_to("finalizing", "finalizing_at", ends_as=ends_as)
        await self._run(self._finalize)

    def look(self) -> None:
        """Something has been asked of the batch: look at once."""
        self._news.set()

    @property
    def _status(self) -> BatchStatus:
        return self._claim.state.batch.status

    async def _watched(self, work: Coroutine[None, None, None]) -> BatchStatus:
        """Do the work until it is done, or is to end otherwise."""
        job, watch = asyncio.create_task(work), asyncio.create_task(self._watch())
        try:
            await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                await job
                return "completed"
            return await watch
        finally:
            job.cancel()
            watch.cancel()
            await asyncio.gather(job, watch, return_exceptions=True)

    async def _watch(self) -> BatchStatus:
        """Ends when the batch is to end; notes its progress meanwhile."""
        claim, seen = self._claim, (0, 0)
        while True:
            if await self._run(claim.is_cancel_asked):
                return "cancelled"
            if self._tools.clock() >= claim.state.batch.expires_at:
                return "expired"
            progress = self._lines.progress
            if seen != (progress.num_completed, progress.num_failed):
                seen = (progress.num_completed, progress.num_failed)
                await self._run(claim.update, self._with_progress)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tools.watch_s):
                    await self._news.wait()
            self._news.clear()

    async def _check_and_answer(self) -> None:
        try:
            path = await self._run(self._tools.files.content, self._claim.owner, self._claim.state.batch.input_file_id)
        except NotFoundError as error:
            await self._fail([BatchLineError(code="file_not_found", message=error.message, param="input_file_id")])
            return
        if self._status == "validating":
            await self._check(path)
        if self._status == "in_progress":
            await self._answer(path)

    async def _check(self, path: Path) -> None:
        config, batch = self._tools.config, self._claim.state.batch
        max_line_bytes = self._tools.max_line_bytes
        check = FileCheck(batch.endpoint, max_requests=config.max_requests, max_line_bytes=max_line_bytes)
        lines = InputLines(path, max_line_bytes)
        while not check.is_over and (chunk := await self._run(lines.take)) is not None:
            await self._run(check.feed, chunk)
        check.finish()
        if not check.errors and check.model is not None:
            check.errors += await self._model_errors(check.model)
        if check.errors:
            await self._fail(check.errors)
            return
        counts = Progress().counts(check.num_requests)
        await self._turn_to("in_progress", "in_progress_at", request_counts=counts, model=check.model)

    async def _model_errors(self, model: str) -> list[BatchLineError]:
        """Whether the model is there for the owner, once that is known."""
        while True:
            try:
                self._tools.check_model(model, self._caller())
            except UnavailableError as error:
                await self._tools.sleep(error.retry_after_s or 1.0)
            except RequestError as error:
                return [BatchLineError(code="model_not_found", message=error.message, line=1, param="body.model")]
            else:
                return []

    async def _answer(self, path: Path) -> None:
        lines, files = self._lines, ResultFiles(*await self._run(self._make_room))
        lines.progress = await self._run(files.read)
        writer = ResultWriter(files, lines.progress, self._tools.threads)
        async with asyncio.TaskGroup() as group:
            async for chunk in self._requests_left(path):
                for request in chunk:
                    await self._places.acquire()
                    await self._wait_for_room()
                    group.create_task(self._answer_one(request, writer))

    async def _requests_left(self, path: Path) -> AsyncIterator[list[LineRequest]]:
        done = frozenset(self._lines.progress.done)
        lines = InputLines(path, self._tools.max_line_bytes)
        while (chunk := await self._run(lines.take)) is not None:
            yield await self._run(requests_left, chunk, done)

    async def _wait_for_room(self) -> None:
        """Until the next request may begin: none waits that somebody waits for, and its key has enough left."""
        model = self._claim.state.batch.model or ""
        while True:
            wait_s = self._lines.resume_s - self._tools.monotonic()
            if wait_s <= 0 and self._tools.num_waiting(model) > self._tools.running.of(model):
                wait_s = _YIELD_S
            if wait_s <= 0:
                wait_s = self._caller().seconds_until_free()
            if wait_s <= 0:
                return
            await self._tools.sleep(wait_s)

    def _caller(self) -> BatchCaller:
        caller = self._tools.caller_of(self._claim.owner)
        if caller is None:
            raise OwnerGoneError
        return caller

    async def _answer_one(self, request: LineRequest, writer: ResultWriter) -> None:
        tools, lines, batch = self._tools, self._lines, self._claim.state.batch
        try:
            for attempt in count():
                caller = self._caller()
                async with tools.running.one_of(batch.model or ""):
                    limit_s = tools.config.request_timeout_s
                    answer = await tools.call(batch.endpoint, request.body, caller, limit_s)
                retry_after_s = self._retry_after(answer)
                if retry_after_s is None:
                    break
                wait_s = wait_before(attempt, retry_after_s)
                lines.resume_s = max(lines.resume_s, tools.monotonic() + wait_s)
                await tools.sleep(wait_s)
            await writer.add(answered(request, answer))
        finally:
            self._places.release()

    def _retry_after(self, answer: LineAnswer) -> float | None:
        """Seconds until a request is to be tried again; None: it has its answer."""
        lines, now_s = self._lines, self._tools.monotonic()
        if answer.status != HTTPStatus.NOT_FOUND:
            lines.gone_since_s = None
            return answer.retry_after_s
        if lines.gone_since_s is None:
            lines.gone_since_s = now_s
        return _GONE_WAIT_S if now_s - lines.gone_since_s < _GONE_S else None

    async def _expire_rest(self, ends_as: BatchStatus) -> None:
        """An entry for each request that the window has ended before."""
        batch = self._claim.state.batch
        if ends_as != "expired" or batch.in_progress_at is None:
            return
        files = ResultFiles(*await self._run(self._make_room))
        self._lines.progress = await self._run(files.read)
        with contextlib.suppress(NotFoundError):
            path = await self._run(self._tools.files.content, self._claim.owner, batch.input_file_id)
            async for chunk in self._requests_left(path):
                rest = [refused(one, "batch_expired", _EXPIRED, f"req_{secrets.token_hex(16)}") for one in chunk]
                await self._run(files.append, rest)

    def _make_room(self) -> tuple[Path, Path]:
        files, owner = self._tools.files, self._claim.owner
        return files.make_room(owner, self._output.name), files.make_room(owner, self._errors.name)

    def _finalize(self) -> None:
        """Show the files that have something, and say how the batch has ended. May be done twice. Blocks."""
        files, claim, state = self._tools.files, self._claim, self._claim.state
        results = ResultFiles(*self._make_room())
        self._lines.progress = results.read()
        batch_id, shown = claim.batch_id, {}
        for kind, file_id, has_some in (
            ("output", state.output_id, results.has_output),
            ("error", state.error_id, results.has_errors),
        ):
            if has_some:
                files.show(claim.owner, file_id, f"{batch_id}_{kind}.jsonl", "batch_output", state.output_keep_s)
                shown[f"{kind}_file_id"] = file_id
            else:
                files.remove(claim.owner, file_id)
        ends_as, now_s = state.ends_as, int(self._tools.clock())

        def ended(state: BatchState) -> BatchState:
            batch = self._with_progress(state).batch
            return replace(state, batch=replace(batch, status=ends_as, **shown, **{f"{ends_as}_at": now_s}))

        claim.update(ended)
        counts = claim.state.batch.request_counts
        logger.info(
            "batch ended id=%s as=%s total=%d completed=%d failed=%d",
            batch_id, ends_as, counts.total, counts.completed, counts.failed,
        )  # fmt: skip

    async def _fail(self, errors: list[BatchLineError]) -> None:
        logger.info("batch failed id=%s num_errors=%d", self._claim.batch_id, len(errors))
        await self._turn_to("failed", "failed_at", errors=BatchErrors(data=errors))

    async def _turn_to(
        self, status: BatchStatus, time_field: str, *, ends_as: BatchStatus = "completed", **changes: object
    ) -> None:
        now_s = int(self._tools.clock())

        def turned(state: BatchState) -> BatchState:
            batch = replace(state.batch, status=status, **{time_field: now_s}, **changes)
            return replace(state, batch=batch, ends_as=ends_as)

        await self._run(self._claim.update, turned)

    def _with_progress(self, state: BatchState) -> BatchState:
        progress, batch = self._lines.progress, state.batch
        counts = progress.counts(batch.request_counts.total)
        return replace(state, batch=replace(batch, request_counts=counts, usage=progress.usage))
