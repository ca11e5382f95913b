"""The Router deployment: drives one copy of a model. (Ray's own "request router" is what picks the replica.)"""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.checkpoints.quality_gate import check_quality
from serve_app.checkpoints.source import pin_source
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.copy_replica import CopyReplica
from serve_app.deployments.generation_work import GenerationWork
from serve_app.deployments.model_copy import ModelCopy
from serve_app.deployments.shard import ShardActor
from serve_app.errors import ConfigError, InternalError, QueueFullError, RayshardError
from serve_app.observability import configure_logging
from serve_app.planning.planner import check_split, describe_plan, format_plan, plan_shards, served_dtype
from serve_app.preprocessing.tokenizer_files import read_tokenizer_files
from serve_app.scheduling.scheduler import SequenceOutput
from serve_app.scheduling.sequence import Sequence, SequenceState
from serve_app.types.generation import Completion, FinishReason, GenerateRequest, OutputChunk
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    """One request while its unary call is open."""

    reply_to: LinkAddress
    stream: int
    ended: asyncio.Future[None]
    sequences: list[Sequence] = field(default_factory=list)
    num_unfinished: int = 0


class Router(CopyReplica):
    """Takes requests over Serve, one unary call each; their tokens leave by the token links."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ModelConfig, _preprocessor: Any = None, shard_actor: Any = ShardActor
    ) -> None:
        configure_logging()
        environment = read_environment()
        self._source = await asyncio.to_thread(
            pin_source, config.source, config.revision, Path.cwd(), environment, config.remote_weights
        )
        spec = await asyncio.to_thread(read_model_spec, Path(self._source.directory))
        read_tokenizer_files(self._source.directory)
        problems = check_split(spec, config)
        if config.quality is not None:
            problems += await asyncio.to_thread(check_quality, Path(self._source.directory), config.quality)
        if problems:
            raise ConfigError("\n".join(problems))
        self._config = config
        self._spec = spec
        self._set_up(takes_calls=False)
        self._calls: dict[Sequence, _Call] = {}
        self._work = GenerationWork(config, spec, self._source, self._take_outputs)
        rows = describe_plan(spec, plan_shards(spec, config.parallel.pipeline, config.parallel.tensor), config)
        logger.info(
            "model starting source=%s dtype=%s max_model_len=%d settings=%s\n%s",
            self._source.directory,
            served_dtype(spec, config),
            self._work.max_model_len,
            config.model_dump_json(),
            format_plan(rows),
        )
        await self._start(ModelCopy(self._work, self._node, self._lose, shard_actor))

    async def generate(self, request: GenerateRequest, reply_to: LinkAddress, stream: int) -> Completion:
        """Run one request to its end. Cancelling this call aborts its sequences."""
        await self._copy.wait_until_ready(request.queue_timeout_s)
        call = _Call(reply_to, stream, asyncio.get_running_loop().create_future())
        self._copy.refuse_unless_ready()
        call.sequences = self._work.submit(request)
        self._copy.wake()
        call.num_unfinished = len(call.sequences)
        for sequence in call.sequences:
            self._calls[sequence] = call
        expiry = self._expire_later(request, call)
        try:
            await call.ended
        finally:
            if expiry is not None:
                expiry.cancel()
            self._release(call)
        return Completion(
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=[sequence.num_outputs for sequence in call.sequences],
            finish_reasons=[_reason_of(sequence) for sequence in call.sequences],
        )

    async def register(self, gateway: LinkAddress) -> list[ModelDescription]:
        """Describe the model to a Gateway replica, and tell it this copy's state from now on."""
        self._gateways.register(gateway, self._copy.epoch, self._copy.state(self._replica_id))
        return await self.describe()

    async def describe(self) -> list[ModelDescription]:
        """What is served here: one model."""
        description = ModelDescription(
            name=self._config.name,
            task=self._config.task,
            source_dir=str(self._spec.source_dir),
            max_model_len=self._work.max_model_len,
            max_request_tokens=self._work.max_request_tokens,
            vocab_size=self._spec.vocab_size,
            eos_token_ids=sorted(self._work.eos_token_ids),
            created_s=self._created_s,
            source=self._source,
            has_preprocessing=bool(self._config.preprocessing),
            is_prompt_templated=self._config.is_prompt_templated,
        )
        return [description]

    def _take_outputs(self, outputs: list[SequenceOutput]) -> None:
        """Send what is new: one message for each Gateway replica."""
        by_gateway: dict[LinkAddress, list[tuple[int, OutputChunk]]] = {}
        for output in outputs:
            call = self._calls.get(output.sequence)
            if call is None:
                continue
            by_gateway.setdefault(call.reply_to, []).append((call.stream, output.chunk))
            if output.chunk.finish_reason is not None:
                call.num_unfinished -= 1
                if call.num_unfinished == 0 and not call.ended.done():
                    call.ended.set_result(None)
        for gateway, chunks in by_gateway.items():
            if not self._links.send_tokens(gateway, self._copy.epoch, chunks):
                self._fail_calls_of(gateway)

    def _fail_calls_of(self, gateway: LinkAddress) -> None:
        error = InternalError(f"tokens cannot be sent to the Gateway on node {gateway.node}")
        for call in {call for call in self._calls.values() if call.reply_to.server_key == gateway.server_key}:
            if not call.ended.done():
                call.ended.set_exception(error)

    def _lose(self, error: RayshardError) -> None:
        """End every open call with the error: the shards' state is gone."""
        for call in set(self._calls.values()):
            if not call.ended.done():
                call.ended.set_exception(error)
        self._send_states()

    def _release(self, call: _Call) -> None:
        for sequence in call.sequences:
            self._calls.pop(sequence, None)
        self._work.abort(call.sequences)
        self._copy.wake()

    def _expire_later(self, request: GenerateRequest, call: _Call) -> asyncio.TimerHandle | None:
        if request.queue_timeout_s is None:
            return None

        def expire() -> None:
            is_waiting = all(
                sequence.state is SequenceState.WAITING and sequence.num_preemptions == 0 for sequence in call.sequences
            )
            if is_waiting and not call.ended.done():
                call.ended.set_exception(
                    QueueFullError(
                        f"the request waited longer than queue_timeout_s={request.queue_timeout_s} for its turn",
                        retry_after_s=1.0,
                    )
                )

        return asyncio.get_running_loop().call_later(request.queue_timeout_s, expire)

    def _keys_in_use(self) -> set[str]:
        return {call.reply_to.server_key for call in self._calls.values()}


def _reason_of(sequence: Sequence) -> FinishReason:
    return sequence.finish_reason or "abort"
