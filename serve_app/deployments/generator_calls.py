"""Calls of a model that generates: each is a few sequences, whose tokens leave by the token link as they are drawn."""

import asyncio
from dataclasses import dataclass, field, replace

from serve_app.backend.time_left import TimeLeft
from serve_app.config.environment import read_environment
from serve_app.deployments.call_trace import CallTrace
from serve_app.deployments.generation_work import GenerationWork
from serve_app.deployments.model_copy import ModelCopy
from serve_app.deployments.queue_time import limited_queue_time
from serve_app.errors import InternalError, RayshardError, ShardLostError, StepLostError
from serve_app.planning.copy_prediction import CopyPrediction, account_of, predict_generator
from serve_app.planning.generator_plan import GeneratorPlan
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.sequence import Sequence, SequenceState
from serve_app.tracing.attributes import (
    CACHED_TOKENS,
    COPY,
    FINISH_REASONS,
    NUM_DONE_TOKENS,
    NUM_PREEMPTIONS,
    OUTPUT_TOKENS,
    Attributes,
    Value,
    generation_attributes,
)
from serve_app.tracing.tracing import Tracing
from serve_app.types.generation import Completion
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from serve_app.types.plans import CopyAccount
from serve_app.wire.links import Senders
from serve_app.wire.messages import PROTOCOL_VERSION, Call, GenerateMessage, GenerateReply, Reply, TokenBatch


@dataclass(slots=True, eq=False)
class _RunningCall:
    reply_to: LinkAddress
    stream: int
    ended: asyncio.Future[object]
    sequences: list[Sequence] = field(default_factory=list)
    num_unfinished: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether none of its sequences has ever run."""
        return all(one.state is SequenceState.WAITING and one.num_preemptions == 0 for one in self.sequences)


class GeneratorCalls:
    """Runs GenerateMessages."""

    def __init__(self, plan: GeneratorPlan, sender: str, senders: Senders, tracing: Tracing | None = None) -> None:
        self.work = GenerationWork(plan, self.take_outputs, tracing)
        self._plan = plan
        self._sender = sender
        self._senders = senders
        self._calls: dict[Sequence, _RunningCall] = {}
        self._prediction: CopyPrediction | None = None  # None: nobody has asked

    def describe(self, created_s: int) -> list[ModelDescription]:
        """One model."""
        return [self._plan.describe(self.work.max_request_tokens, created_s)]

    async def answer(self, call: Call, copy: ModelCopy) -> Reply:
        """Generate; cancelled, or when the request's time has passed, the sequences are aborted."""
        if not isinstance(call, GenerateMessage):
            raise InternalError(f"a Router of a generator takes no {type(call).__name__}")
        left = TimeLeft(call.request.time_left_s)
        traces, request = self.work.traces, call.request
        if traces is None:
            completion = await left.bound(self._generate(call, copy, left, None))
            return GenerateReply(PROTOCOL_VERSION, 0, call.stream, completion)
        attributes = {**generation_attributes(self.work.name, request), COPY: self._sender}
        if request.progress is not None:
            attributes[NUM_DONE_TOKENS] = sum(map(len, request.progress.token_ids))
        with traces.call(f"generate {self.work.name}", request.trace, attributes) as trace:
            completion = await left.bound(self._generate(call, copy, left, trace))
        return GenerateReply(PROTOCOL_VERSION, 0, call.stream, completion)

    async def account(self, copy: ModelCopy) -> list[CopyAccount]:
        """One model; planned when it is asked for first."""
        if self._prediction is None:
            self._prediction = await asyncio.to_thread(predict_generator, self._plan, read_environment())
        measured = copy.measured(lambda report: report.parameter_bytes)
        shards, seen = self.work.shards, self.work.seen_rates()
        return [account_of(self.work.name, self._sender, self._prediction, shards, measured, seen)]

    def lose_shards(self, error: RayshardError) -> None:
        """Give every call back: its caller holds the tokens, and lets this copy or another go on behind them."""
        for call in set(self._calls.values()):
            if not call.ended.done():
                call.ended.set_exception(_loss_of(call, error))

    async def _generate(
        self, message: GenerateMessage, copy: ModelCopy, left: TimeLeft, trace: CallTrace | None
    ) -> Completion:
        await copy.wait_until_ready(message.request.queue_timeout_s)
        request = replace(message.request, time_left_s=left.seconds)
        call = _RunningCall(message.reply_to, message.stream, asyncio.get_running_loop().create_future())
        call.sequences = self.work.submit(request)
        call.num_unfinished = len(call.sequences)
        if self.work.traces is not None:
            self.work.traces.add(trace, call.sequences)
        for sequence in call.sequences:
            self._calls[sequence] = call
        copy.wake()
        try:
            with limited_queue_time(call.ended, request.queue_timeout_s, lambda: call.is_waiting):
                await call.ended
        finally:
            for sequence in call.sequences:
                self._calls.pop(sequence, None)
            self.work.abort(call.sequences)
            copy.wake()
            if trace is not None:
                trace.span.set_attributes(_attributes_of(call.sequences))
        return Completion(
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=[sequence.num_outputs for sequence in call.sequences],
            finish_reasons=[sequence.finish_reason or "abort" for sequence in call.sequences],
        )

    def take_outputs(self, outputs: list[SequenceOutput]) -> None:
        """Send what is new: one message for each Gateway."""
        batches: dict[str, tuple[LinkAddress, TokenBatch]] = {}  # by server key
        ended: list[_RunningCall] = []
        for output in outputs:
            call = self._calls.get(output.sequence)
            if call is None:
                continue
            key = call.reply_to.server_key
            if key not in batches:
                batches[key] = (call.reply_to, TokenBatch.empty(self._sender))
            batch, more = batches[key][1], output.more
            if more is None:
                batch.add_token(call.stream, output.sequence.choice, output.first_index, output.token_id)
                continue
            batch.add(call.stream, more)
            if more.finish_reason is not None:
                call.num_unfinished -= 1
                if call.num_unfinished == 0:
                    ended.append(call)
        for gateway, batch in batches.values():
            if not self._senders.send(gateway, batch):
                self._fail_calls_of(gateway)
        for call in ended:
            if not call.ended.done():
                call.ended.set_result(None)

    def _fail_calls_of(self, gateway: LinkAddress) -> None:
        error = InternalError(f"tokens cannot be sent to the Gateway on node {gateway.node}")
        for call in {call for call in self._calls.values() if call.reply_to.server_key == gateway.server_key}:
            if not call.ended.done():
                call.ended.set_exception(error)


def _attributes_of(sequences: list[Sequence]) -> Attributes:
    """What has become of a call's sequences."""
    found: dict[str, Value] = {
        OUTPUT_TOKENS: sum(one.num_outputs for one in sequences),
        CACHED_TOKENS: max((one.num_cached_tokens for one in sequences), default=0),
        FINISH_REASONS: [one.finish_reason or "abort" for one in sequences],
    }
    num_preemptions = sum(one.num_preemptions for one in sequences)
    return {**found, NUM_PREEMPTIONS: num_preemptions} if num_preemptions else found


def _loss_of(call: _RunningCall, error: RayshardError) -> RayshardError:
    """What the loss of the shards is to a call: it is not tried a third time when they died of it twice."""
    in_step = [sequence for sequence in call.sequences if sequence.num_steps_in_flight]
    if any(sequence.is_on_trial for sequence in in_step):
        return InternalError(f"the model's shards were lost twice in a step of this request: {error.message}")
    kind = StepLostError if in_step else ShardLostError
    return kind(error.message, retry_after_s=1.0)
