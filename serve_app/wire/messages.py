"""What travels on the control link and the token link: msgpack into typed structs, never pickle."""

from typing import Final

import msgspec

from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import Completion, GenerateRequest, OutputChunk
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.links import ErrorReply, LinkAddress
from serve_app.types.models import CopyState, ModelVersion
from serve_app.types.plans import CopyAccount, MemoryTaken
from serve_app.types.steps import BatchStep, BatchStepOutput, GrammarChange, StepInput, StepOutput
from serve_app.types.tensors import InferRequest, InferResult

PROTOCOL_VERSION: Final = 10


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Head of every message: the protocol version, and the epoch of the shard group (0 where there is none)."""

    version: int
    epoch: int


class StepMessage(Message, frozen=True, array_like=True, tag="step"):
    """Router to every shard: run this step."""

    step: StepInput


class BatchStepMessage(Message, frozen=True, array_like=True, tag="batch_step"):
    """Router to every shard: run this step of a batch model."""

    step: BatchStep


class GrammarMessage(Message, frozen=True, array_like=True, tag="grammar"):
    """Router to every shard: the one that draws compiles a grammar beside its steps, or forgets it."""

    change: GrammarChange


class StopMessage(Message, frozen=True, array_like=True, tag="stop"):
    """Router to every shard: end the run."""


class HelloMessage(Message, frozen=True, array_like=True, tag="hello"):
    """Shard to Router: connected, and ready for steps."""

    shard_index: int


class OutputMessage(Message, frozen=True, array_like=True, tag="output"):
    """Last stage to Router: the tokens of a step."""

    output: StepOutput


class BatchOutputMessage(Message, frozen=True, array_like=True, tag="batch_output"):
    """Last stage to Router: the outputs of a batch model's step."""

    output: BatchStepOutput


class HeartbeatMessage(Message, frozen=True, array_like=True, tag="heartbeat"):
    """Shard to Router: alive, with this much done."""

    shard_index: int
    num_steps_done: int
    busy_s: float | None = None  # in which it has computed, of its life; None: it does not count
    memory: MemoryTaken | None = None  # None: it does not say


class StageTimeMessage(Message, frozen=True, array_like=True, tag="stage_time"):
    """Shard to Router: it has computed for so long in a step that was to be timed."""

    shard_index: int
    step_id: int
    busy_s: float


class GrammarReadyMessage(Message, frozen=True, array_like=True, tag="grammar_ready"):
    """Last stage to Router: sequences with this grammar hold no step up any more."""

    number: int


class StreamChunk(msgspec.Struct, frozen=True, array_like=True):
    """A chunk that carries more than one plain token."""

    stream: int
    chunk: OutputChunk


class TokenBatch(Message, frozen=True, array_like=True, tag="tokens"):
    """Router to one Gateway: everything new of one step.

    The four columns hold the plain chunks, one token each; the rest is in `others`, which come after them.
    """

    sender: str
    streams: list[int]
    choices: list[int]
    first_indexes: list[int]
    token_ids: list[int]
    others: list[StreamChunk]

    @classmethod
    def empty(cls, sender: str) -> "TokenBatch":
        """One to be filled."""
        return cls(PROTOCOL_VERSION, 0, sender, [], [], [], [], [])

    def add(self, stream: int, chunk: OutputChunk) -> None:
        """Append a chunk of a stream."""
        is_plain = chunk.finish_reason is None and chunk.logprobs is None and chunk.prompt_logprobs is None
        is_plain = is_plain and chunk.num_cached_tokens == 0
        if is_plain and len(chunk.token_ids) == 1 and not any(other.stream == stream for other in self.others):
            self.add_token(stream, chunk.choice, chunk.first_index, chunk.token_ids[0])
        else:
            self.others.append(StreamChunk(stream, chunk))

    def add_token(self, stream: int, choice: int, index: int, token_id: int) -> None:
        """Append a token that carries nothing else, of a choice that has nothing in this batch yet."""
        self.streams.append(stream)
        self.choices.append(choice)
        self.first_indexes.append(index)
        self.token_ids.append(token_id)


class StateMessage(Message, frozen=True, array_like=True, tag="state"):
    """A replica to every Gateway and Graph that has registered: how it is, and where it takes calls."""

    application: str
    state: CopyState
    deployment: str
    calls: LinkAddress
    model_version: ModelVersion | None  # of the model that it generates with; None: of another kind


class CallMessage(Message, frozen=True, array_like=True, tag="call"):
    """Head of every request of a Gateway replica to one replica of ours; the answer is a reply with its number."""

    stream: int
    reply_to: LinkAddress


class InferMessage(CallMessage, frozen=True, array_like=True, tag="infer"):
    """Gateway to Router: run these entries."""

    request: InferRequest


class ChainMessage(CallMessage, frozen=True, array_like=True, tag="chain"):
    """Gateway to Preprocessor: run these values through a chain."""

    request: ChainRequest


class GenerateMessage(CallMessage, frozen=True, array_like=True, tag="generate"):
    """Gateway to Router: generate; the tokens carry the call's number as their stream."""

    request: GenerateRequest


class GraphMessage(CallMessage, frozen=True, array_like=True, tag="graph"):
    """Gateway to Graph: run these texts."""

    request: GraphRequest


class AccountMessage(CallMessage, frozen=True, array_like=True, tag="account"):
    """Gateway to Router: what was planned, and what is taken?"""


class CancelMessage(CallMessage, frozen=True, array_like=True, tag="cancel"):
    """Gateway to a replica: the answer to this number is wanted no more."""


class RegisterMessage(Message, frozen=True, array_like=True, tag="register"):
    """Gateway to a replica whose state it hears: it is to go on telling it."""

    reply_to: LinkAddress


class InferReply(Message, frozen=True, array_like=True, tag="inferred"):
    """Router to Gateway."""

    stream: int
    result: InferResult


class ChainReply(Message, frozen=True, array_like=True, tag="chained"):
    """Preprocessor to Gateway."""

    stream: int
    result: ChainResult


class GenerateReply(Message, frozen=True, array_like=True, tag="generated"):
    """Router to Gateway: the request has ended, after so many tokens."""

    stream: int
    completion: Completion


class GraphReply(Message, frozen=True, array_like=True, tag="graphed"):
    """Graph to Gateway."""

    stream: int
    result: GraphResult


class AccountReply(Message, frozen=True, array_like=True, tag="accounted"):
    """Router to Gateway: each of its models."""

    stream: int
    accounts: list[CopyAccount]


class ErrorMessage(Message, frozen=True, array_like=True, tag="error"):
    """A replica to Gateway: the call of this number has failed."""

    stream: int
    error: ErrorReply


Call = InferMessage | ChainMessage | GenerateMessage | GraphMessage | AccountMessage
Reply = InferReply | ChainReply | GenerateReply | GraphReply | AccountReply | ErrorMessage
ToReplica = Call | CancelMessage | RegisterMessage
ToGateway = TokenBatch | StateMessage | Reply
ToShard = StepMessage | BatchStepMessage | GrammarMessage | StopMessage
ToRouter = HelloMessage | OutputMessage | BatchOutputMessage | HeartbeatMessage | StageTimeMessage | GrammarReadyMessage


def unpack_batch(batch: TokenBatch) -> list[tuple[int, OutputChunk]]:
    """The (stream, chunk) pairs of a batch."""
    chunks = [
        (stream, OutputChunk(choice, first_index, [token_id]))
        for stream, choice, first_index, token_id in zip(
            batch.streams, batch.choices, batch.first_indexes, batch.token_ids, strict=True
        )
    ]
    if batch.others:
        chunks.extend((other.stream, other.chunk) for other in batch.others)
    return chunks
