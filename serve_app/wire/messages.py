"""What travels on the control link and the token link: msgpack into typed structs, never pickle."""

from typing import Final

import msgspec

from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import OutputChunk
from serve_app.types.links import ErrorReply, LinkAddress
from serve_app.types.models import CopyState
from serve_app.types.steps import BatchStep, BatchStepOutput, StepInput, StepOutput
from serve_app.types.tensors import InferRequest, InferResult

PROTOCOL_VERSION: Final = 3


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Head of every message: who speaks which protocol, for which life of the shard group."""

    version: int
    epoch: int


class StepMessage(Message, frozen=True, array_like=True, tag="step"):
    """Router to every shard: run this step."""

    step: StepInput


class BatchStepMessage(Message, frozen=True, array_like=True, tag="batch_step"):
    """Router to every shard: run this step of a batch model."""

    step: BatchStep


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


class StreamChunk(msgspec.Struct, frozen=True, array_like=True):
    """A chunk that carries more than one plain token."""

    stream: int
    chunk: OutputChunk


class TokenBatch(Message, frozen=True, array_like=True, tag="tokens"):
    """Router to one Gateway replica: everything new of one step.

    The four columns hold the plain chunks, one token each; the rest is in `others`.
    """

    sender: str
    streams: list[int]
    choices: list[int]
    first_indexes: list[int]
    token_ids: list[int]
    others: list[StreamChunk]


class StateMessage(Message, frozen=True, array_like=True, tag="state"):
    """Router to every Gateway that has registered: how this model copy is."""

    application: str
    state: CopyState
    deployment: str = "Router"
    calls: LinkAddress | None = None  # where this replica takes calls


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


class CancelMessage(CallMessage, frozen=True, array_like=True, tag="cancel"):
    """Gateway to a replica: the answer to this number is wanted no more."""


class InferReply(Message, frozen=True, array_like=True, tag="inferred"):
    """Router to Gateway."""

    stream: int
    result: InferResult


class ChainReply(Message, frozen=True, array_like=True, tag="chained"):
    """Preprocessor to Gateway."""

    stream: int
    result: ChainResult


class ErrorMessage(Message, frozen=True, array_like=True, tag="error"):
    """A replica to Gateway: the call of this number has failed."""

    stream: int
    error: ErrorReply


Call = InferMessage | ChainMessage
Reply = InferReply | ChainReply | ErrorMessage
ToReplica = InferMessage | ChainMessage | CancelMessage
ToGateway = TokenBatch | StateMessage | InferReply | ChainReply | ErrorMessage
ToShard = StepMessage | BatchStepMessage | StopMessage
ToRouter = HelloMessage | OutputMessage | BatchOutputMessage | HeartbeatMessage


def token_batch(epoch: int, sender: str, chunks: list[tuple[int, OutputChunk]]) -> TokenBatch:
    """Pack (stream, chunk) pairs; the order within a stream is kept."""
    batch = TokenBatch(PROTOCOL_VERSION, epoch, sender, [], [], [], [], [])
    in_others: set[int] = set()  # streams whose next chunks must not overtake
    for stream, chunk in chunks:
        is_plain = chunk.finish_reason is None and chunk.logprobs is None and chunk.prompt_logprobs is None
        if is_plain and len(chunk.token_ids) == 1 and stream not in in_others:
            batch.streams.append(stream)
            batch.choices.append(chunk.choice)
            batch.first_indexes.append(chunk.first_index)
            batch.token_ids.append(chunk.token_ids[0])
        else:
            in_others.add(stream)
            batch.others.append(StreamChunk(stream, chunk))
    return batch


def unpack_batch(batch: TokenBatch) -> list[tuple[int, OutputChunk]]:
    """The (stream, chunk) pairs of a batch."""
    chunks = [
        (stream, OutputChunk(choice, first_index, [token_id]))
        for stream, choice, first_index, token_id in zip(
            batch.streams, batch.choices, batch.first_indexes, batch.token_ids, strict=True
        )
    ]
    chunks.extend((other.stream, other.chunk) for other in batch.others)
    return chunks
