"""What is packed for a link comes out of it unchanged."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.types.chains import LabelScore
from serve_app.types.generation import Completion, GenerateRequest, OutputChunk, SamplingParams, TokenLogprobs
from serve_app.types.graphs import GraphRequest, GraphResult, GraphRun, GraphValue
from serve_app.types.links import ErrorReply, LinkAddress
from serve_app.types.models import CopyState, ModelVersion
from serve_app.types.plans import (
    CopyAccount,
    MeasuredBytes,
    MemoryTaken,
    PredictedBytes,
    Rates,
    SeenRates,
    ShardAccount,
)
from serve_app.types.steps import (
    BatchStep,
    BatchStepOutput,
    PromptTargets,
    SequenceStart,
    StepInput,
    StepOutput,
)
from serve_app.types.tensors import InferRequest, InferResult, TensorData
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    AccountMessage,
    AccountReply,
    BatchOutputMessage,
    BatchStepMessage,
    CancelMessage,
    ErrorMessage,
    GenerateMessage,
    GenerateReply,
    GraphMessage,
    GraphReply,
    HeartbeatMessage,
    HelloMessage,
    InferMessage,
    InferReply,
    Message,
    OutputMessage,
    StateMessage,
    StepMessage,
    StopMessage,
    StreamChunk,
    ToGateway,
    TokenBatch,
    ToReplica,
    ToRouter,
    ToShard,
    unpack_batch,
)
from tests.fakes_links import batch_of

PARAMS = SamplingParams(
    max_tokens=5,
    seed=2**63 - 1,
    min_tokens=1,
    temperature=0.7,
    top_k=4,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.2,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
    logit_bias={0: -100.0, 31: 4.5},
    stop_token_ids=(7, 9),
    ignore_eos=True,
    num_logprobs=0,
    num_prompt_logprobs=2,
)
START = SequenceStart(3, 1, PARAMS, [2, 7, 9], 2, [5, 6, 7], 1)
STEP = StepInput(
    step_id=12,
    starts=[START],
    slot_rows=[3, 0],
    num_tokens=[2, 1],
    num_computed=[0, 8],
    new_blocks=[[4, 1], []],
    token_ids=[5, 6, 7],
    samples=[False, True],
    prompt_targets={0: PromptTargets(1, [7], 2)},
)
LOGPROBS = TokenLogprobs(7, float("-inf"), 30_000, [1, 2], [-0.1, -2.5])
OUTPUT = StepOutput(12, [-1, 7], [None, LOGPROBS], {1: [LOGPROBS]})
STATE = CopyState("replica#1", "rebuilding", "shard 0 is gone", 3, 4, 5, 6)
ENDED = OutputChunk(1, 4, [7], [LOGPROBS], [LOGPROBS], "stop", 7)
PLAIN = OutputChunk(0, 3, [8])


ITEM = {"x": TensorData("int8", (2, 3), bytes(range(6))), "y": TensorData("bool", (0,), b"")}
PARAMS = SamplingParams(5, 7, logit_bias={3: -1.5}, stop_token_ids=(2,), num_logprobs=2)
GENERATE = GenerateRequest("r", [1, 2, 3], PARAMS, 2, 2.5)
GRAPH_RESULT = GraphResult(["a"], [GraphRun([GraphValue("label", labels=[[LabelScore("de", 0.5)]])])], False, 3)
TAKEN = MeasuredBytes.of(2, MemoryTaken(1, 3, 4))
ACCOUNT = CopyAccount(
    "m",
    "replica#1",
    "h100",
    [ShardAccount(0, 0, (0, 3), PredictedBytes(1, 2, 3, 4, 10), TAKEN), ShardAccount(1, 0, (3, 4), None, None)],
    Rates(1024, 2.5, 0.1, 3.5, 4, 9.5, "memory"),
    SeenRates(1.5),
    ["a note"],
)
ADDRESS = LinkAddress("10.0.0.1", "tcp://127.0.0.1:1", None, "key")


def version(epoch: int = 3) -> dict[str, int]:
    return {"version": PROTOCOL_VERSION, "epoch": epoch}


@pytest.mark.parametrize(
    ("message", "end"),
    [
        (StepMessage(**version(), step=STEP), ToShard),
        (StopMessage(**version()), ToShard),
        (HelloMessage(**version(), shard_index=2), ToRouter),
        (OutputMessage(**version(), output=OUTPUT), ToRouter),
        (OutputMessage(**version(), output=StepOutput(0, [])), ToRouter),
        (HeartbeatMessage(PROTOCOL_VERSION, 4, 1, 2**40), ToRouter),
        (HeartbeatMessage(PROTOCOL_VERSION, 4, 1, 3, memory=MemoryTaken(1, 2, 2**40)), ToRouter),
        (AccountMessage(PROTOCOL_VERSION, 0, 9, ADDRESS), ToReplica),
        (AccountReply(PROTOCOL_VERSION, 0, 9, [ACCOUNT]), ToGateway),
        (batch_of("replica#1", [(9, PLAIN), (11, ENDED)]), ToGateway),
        (StateMessage(PROTOCOL_VERSION, 3, "demo", STATE, "Router", ADDRESS, ModelVersion("a", "b")), ToGateway),
        (BatchStepMessage(**version(), step=BatchStep(4, 1, ITEM)), ToShard),
        (BatchOutputMessage(**version(), output=BatchStepOutput(4, ITEM)), ToRouter),
        (BatchOutputMessage(**version(), output=BatchStepOutput(4, {}, "ValueError")), ToRouter),
        (InferMessage(PROTOCOL_VERSION, 0, 9, ADDRESS, InferRequest("r", "m", [ITEM, ITEM], 2.5)), ToReplica),
        (CancelMessage(PROTOCOL_VERSION, 0, 9, ADDRESS), ToReplica),
        (GenerateMessage(PROTOCOL_VERSION, 0, 9, ADDRESS, GENERATE), ToReplica),
        (GenerateReply(PROTOCOL_VERSION, 0, 9, Completion(3, [4, 5], ["stop", "length"])), ToGateway),
        (GraphMessage(PROTOCOL_VERSION, 0, 9, ADDRESS, GraphRequest("r", "g", ["text"], 2.5, True)), ToReplica),
        (GraphReply(PROTOCOL_VERSION, 0, 9, GRAPH_RESULT), ToGateway),
        (InferReply(PROTOCOL_VERSION, 0, 9, InferResult([ITEM])), ToGateway),
        (ErrorMessage(PROTOCOL_VERSION, 0, 9, ErrorReply("QueueFullError", "full", "model", 1.5)), ToGateway),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else "",
)
def test_every_message_comes_out_as_it_went_in(message: Message, end: Any) -> None:
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=end)
    assert decoded == message
    assert type(decoded) is type(message)


def test_integer_keys_and_tuples_keep_their_types() -> None:
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(STEP), type=StepInput)
    assert decoded.starts[0].params.stop_token_ids == (7, 9)
    assert list(decoded.starts[0].params.logit_bias) == [0, 31]
    assert list(decoded.prompt_targets) == [0]


@pytest.mark.parametrize(
    "payload",
    [
        msgspec.msgpack.encode(StopMessage(**version())),  # of the other direction
        msgspec.msgpack.encode(["hello", "1", 3, 0]),
        msgspec.msgpack.encode(["hello", 1, 3]),
        msgspec.msgpack.encode({"type": "hello", "version": 1, "epoch": 3, "shard_index": 0}),
    ],
    ids=["another message", "wrong type", "too short", "a map"],
)
def test_what_is_not_a_message_of_that_end_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(payload, type=ToRouter)


def test_plain_tokens_travel_in_columns_and_the_rest_beside_them() -> None:
    two = OutputChunk(0, 0, [1, 2])
    batch = batch_of("replica#1", [(9, PLAIN), (11, ENDED), (12, two), (13, OutputChunk(2, 0, [4]))])
    assert batch == TokenBatch(
        **version(epoch=0),
        sender="replica#1",
        streams=[9, 13],
        choices=[0, 2],
        first_indexes=[3, 0],
        token_ids=[8, 4],
        others=[StreamChunk(11, ENDED), StreamChunk(12, two)],
    )


@pytest.mark.parametrize(
    "chunk",
    [
        OutputChunk(0, 0, [4], finish_reason="length"),
        OutputChunk(0, 0, [4], logprobs=[LOGPROBS]),
        OutputChunk(0, 0, [4], prompt_logprobs=[LOGPROBS]),
        OutputChunk(0, 0, [], prompt_logprobs=[LOGPROBS]),
        OutputChunk(0, 0, [], finish_reason="error"),
        OutputChunk(0, 0, [4, 5]),
        OutputChunk(0, 0, [4]),
    ],
)
def test_no_kind_of_chunk_loses_anything_in_a_batch(chunk: OutputChunk) -> None:
    assert unpack_batch(batch_of("replica#1", [(9, chunk)])) == [(9, chunk)]


CHUNKS = st.builds(
    OutputChunk,
    choice=st.integers(0, 2),
    first_index=st.integers(0, 2**31),
    token_ids=st.lists(st.integers(0, 300_000), max_size=2),
    logprobs=st.sampled_from([None, [LOGPROBS]]),
    finish_reason=st.sampled_from([None, None, "stop", "error"]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), CHUNKS), max_size=8))
def test_a_batch_keeps_the_order_within_each_stream(chunks: list[tuple[int, OutputChunk]]) -> None:
    payload = msgspec.msgpack.encode(batch_of("replica#1", chunks))
    unpacked = unpack_batch(msgspec.msgpack.decode(payload, type=TokenBatch))
    assert len(unpacked) == len(chunks)
    for stream in range(4):
        assert [chunk for number, chunk in unpacked if number == stream] == [
            chunk for number, chunk in chunks if number == stream
        ]
