"""Calls of models that are done with an entry after one step: encoders, classifiers, any nn.Module."""

import asyncio
from dataclasses import replace

from serve_app.backend.time_left import TimeLeft
from serve_app.config.environment import read_environment
from serve_app.deployments.batch_work import BatchWork
from serve_app.deployments.call_trace import CallTrace
from serve_app.deployments.model_copy import ModelCopy
from serve_app.deployments.queue_time import limited_queue_time
from serve_app.errors import InternalError, RayshardError
from serve_app.planning.copy_prediction import CopyPrediction, account_of, predict_batch
from serve_app.planning.served_model import BatchModelPlan
from serve_app.scheduling.jobs import Job, JobResult
from serve_app.tracing.attributes import request_attributes
from serve_app.tracing.tracing import Tracing
from serve_app.types.models import ModelDescription
from serve_app.types.plans import CopyAccount
from serve_app.types.tensors import InferRequest, InferResult
from serve_app.wire.messages import PROTOCOL_VERSION, Call, InferMessage, InferReply, Reply


class BatchCalls:
    """Runs InferMessages."""

    def __init__(self, plans: list[BatchModelPlan], sender: str, tracing: Tracing | None = None) -> None:
        self.work = BatchWork(plans, self._take_results, tracing)
        self._plans = plans
        self._sender = sender
        self._predictions: list[CopyPrediction] = []  # empty: nobody has asked
        self._waiting: dict[Job, asyncio.Future[InferResult]] = {}

    def describe(self, created_s: int) -> list[ModelDescription]:
        """All models of the application."""
        return [plan.describe(self.work.reports[plan.config.name], created_s) for plan in self._plans]

    async def answer(self, call: Call, copy: ModelCopy) -> Reply:
        """Run entries; cancelled, or when the request's time has passed, they are given up."""
        if not isinstance(call, InferMessage):
            raise InternalError(f"a Router of such models takes no {type(call).__name__}")
        left = TimeLeft(call.request.time_left_s)
        traces, request = self.work.traces, call.request
        if traces is None:
            result = await left.bound(self._infer(request, copy, left, None))
            return InferReply(PROTOCOL_VERSION, 0, call.stream, result)
        attributes = request_attributes(request.model, request.request_id, len(request.items))
        with traces.call(f"infer {request.model}", request.trace, attributes) as trace:
            result = await left.bound(self._infer(request, copy, left, trace))
        return InferReply(PROTOCOL_VERSION, 0, call.stream, result)

    async def account(self, copy: ModelCopy) -> list[CopyAccount]:
        """All models of the application; what a process takes is that of all of them together."""
        if not self._predictions:
            environment = read_environment()
            self._predictions = [await asyncio.to_thread(predict_batch, plan, environment) for plan in self._plans]
        return [self._account_of(index, copy) for index in range(len(self._plans))]

    def _account_of(self, index: int, copy: ModelCopy) -> CopyAccount:
        plan, prediction, seen = self._plans[index], self._predictions[index], self.work.seen_rates()
        measured = copy.measured(lambda report: report.models[index].parameter_bytes)
        return account_of(plan.config.name, self._sender, prediction, plan.shards, measured, seen)

    def lose_shards(self, _error: RayshardError) -> None:
        """What was in flight is in the queue again: nothing ends but what has killed shards before."""

    async def _infer(
        self, request: InferRequest, copy: ModelCopy, left: TimeLeft, trace: CallTrace | None
    ) -> InferResult:
        await copy.wait_until_ready(request.queue_timeout_s)
        job = self.work.submit(replace(request, time_left_s=left.seconds))
        ended: asyncio.Future[InferResult] = asyncio.get_running_loop().create_future()
        self._waiting[job] = ended
        if self.work.traces is not None:
            self.work.traces.add(trace, [job])
        copy.wake()
        try:
            with limited_queue_time(ended, request.queue_timeout_s, lambda: not job.is_begun):
                return await ended
        finally:
            del self._waiting[job]
            self.work.cancel(job)

    def _take_results(self, results: list[JobResult]) -> None:
        for result in results:
            ended = self._waiting.get(result.job)
            if ended is None or ended.done():
                continue
            if result.result is not None:
                ended.set_result(result.result)
            else:
                ended.set_exception(result.error or InternalError("the request failed"))
