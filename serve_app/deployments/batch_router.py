"""The Router deployment of models that are done with an entry after one step: encoders, classifiers, any nn.Module."""

import asyncio
import logging
from pathlib import Path
from typing import Any

from serve_app.checkpoints.quality_gate import check_quality
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig, ModelSetConfig
from serve_app.deployments.batch_work import BatchWork
from serve_app.deployments.call_server import CallServer
from serve_app.deployments.copy_replica import CopyReplica
from serve_app.deployments.model_copy import ModelCopy
from serve_app.deployments.shard import ShardActor
from serve_app.errors import ConfigError, InternalError, QueueFullError, RayshardError
from serve_app.observability import configure_logging
from serve_app.planning.served_model import plan_batch_model
from serve_app.scheduling.batch_scheduler import Job, JobResult
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult
from serve_app.wire.messages import PROTOCOL_VERSION, Call, InferMessage, InferReply, Reply

logger = logging.getLogger(__name__)


class BatchRouter(CopyReplica):
    """Takes requests over the call link, or by Serve calls of other deployments."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ModelConfig | ModelSetConfig, _preprocessor: Any = None, shard_actor: Any = ShardActor
    ) -> None:
        configure_logging()
        environment = read_environment()
        models = config.shared_models if isinstance(config, ModelSetConfig) else [config]
        self._plans = [await asyncio.to_thread(plan_batch_model, model, Path.cwd(), environment) for model in models]
        for plan in self._plans:
            if plan.config.quality is not None:
                directory = Path(plan.source.directory)
                problems = await asyncio.to_thread(check_quality, directory, plan.config.quality)
                if problems:
                    raise ConfigError("\n".join(problems))
        self._set_up(takes_calls=True)
        self._waiting: dict[Job, asyncio.Future[InferResult]] = {}
        self._work = BatchWork(models[0], self._plans, self._take_results)
        for plan in self._plans:
            logger.info("model starting settings=%s\n%s", plan.config.model_dump_json(), plan.text)
        copy = ModelCopy(self._work, self._node, self._lose, shard_actor)
        await self._start(copy)
        assert self._receiver is not None
        self._server = CallServer(self._receiver, self._links, self._answer)
        self._tasks.append(asyncio.create_task(self._server.run()))

    async def infer(self, request: InferRequest) -> InferResult:
        """Run a request to its end. Cancelling this call gives it up."""
        if not self._copy.is_ready:
            await self._copy.wait_until_ready(request.queue_timeout_s)
        job = self._work.submit(request)
        ended: asyncio.Future[InferResult] = asyncio.get_running_loop().create_future()
        self._waiting[job] = ended
        self._copy.wake()
        expiry = self._expire_later(request, job, ended)
        try:
            return await ended
        finally:
            if expiry is not None:
                expiry.cancel()
            del self._waiting[job]
            self._work.cancel(job)

    async def register(self, gateway: LinkAddress) -> list[ModelDescription]:
        """Describe the models to a Gateway replica, and tell it this copy's state from now on."""
        self._gateways.register(gateway, self._copy.epoch, self._copy.state(self._replica_id))
        return await self.describe()

    async def describe(self) -> list[ModelDescription]:
        """What is served here."""
        return [plan.describe(self._work.reports[plan.config.name], self._created_s) for plan in self._plans]

    async def check_health(self) -> None:
        """Serve replaces this replica when it cannot run, or hear, any more."""
        await super().check_health()
        if any(task.done() for task in self._tasks):
            raise InternalError("a task of the Router has ended; see the log")

    async def _answer(self, message: Call) -> Reply:
        if not isinstance(message, InferMessage):
            raise InternalError(f"a Router takes no {type(message).__name__}")
        return InferReply(PROTOCOL_VERSION, self._copy.epoch, message.stream, await self.infer(message.request))

    def _take_results(self, results: list[JobResult]) -> None:
        for result in results:
            ended = self._waiting.get(result.job)
            if ended is None or ended.done():
                continue
            if result.result is not None:
                ended.set_result(result.result)
            else:
                ended.set_exception(result.error or InternalError("the request failed"))

    def _lose(self, _error: RayshardError) -> None:
        """What was in flight is in the queue again: nothing ends but what has killed shards before."""
        self._send_states()

    def _keys_in_use(self) -> set[str]:
        return self._server.keys_in_use if hasattr(self, "_server") else set()

    def _expire_later(
        self, request: InferRequest, job: Job, ended: "asyncio.Future[InferResult]"
    ) -> asyncio.TimerHandle | None:
        if request.queue_timeout_s is None:
            return None

        def expire() -> None:
            if not job.is_begun and not ended.done():
                message = f"the request waited longer than queue_timeout_s={request.queue_timeout_s} for its turn"
                ended.set_exception(QueueFullError(message, retry_after_s=1.0))

        return asyncio.get_running_loop().call_later(request.queue_timeout_s, expire)
