"""A replica of a one-step model without Serve or Ray: what dies with its shards is run again, and nobody notices."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.batch_calls import BatchCalls
from serve_app.deployments.copy_work import CopyWork
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.replica_links import ReplicaIdentity
from serve_app.errors import ConfigError, QueueFullError, TimeoutExceededError
from serve_app.planning.served_model import plan_batch_model
from serve_app.preprocessing.arrays import integer_tensor, to_array
from serve_app.scheduling.jobs import Job
from serve_app.tracing.tracing import Tracing
from serve_app.types.models import ModelDescription
from serve_app.types.shards import BatchModelReport, ShardReport
from serve_app.types.tensors import InferRequest, InferResult, Item, TensorSpec
from serve_app.wire.links import LOOPBACK, Senders
from serve_app.wire.messages import InferMessage
from tests.fakes_group import EchoGroup
from tests.fakes_serve import FakeControl, running_backend, states, until
from tests.spans import SAMPLED, UNSAMPLED, KeptSpans

ROOT = Path(__file__).parents[3]
TICKETS = ROOT / "examples" / "text_classifier" / "model"
REPORT = BatchModelReport(
    "tickets",
    0,
    0,
    3,
    {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))},
    {"logits": TensorSpec("float32", ("batch", 2))},
)


def make_calls(tracing: Tracing | None = None) -> BatchCalls:
    config = ModelConfig.model_validate(
        {
            "name": "tickets",
            "source": str(TICKETS),
            "task": "classify",
            "architecture": "serve_app.models.text_classifier:TextClassifier",
            "engine": {"max_queued": 4, "max_num_seqs": 2},
        }
    )
    return BatchCalls([plan_batch_model(config, ROOT, read_environment({}))], "a", tracing)


class Tickets:
    """One replica of the shipped classifier, on shards that only count tokens."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.groups: list[EchoGroup] = []
        self.calls = make_calls(tracing)
        identity = ReplicaIdentity("a", "tickets", "Router", LOOPBACK)
        self.replica = ModelReplica(
            identity, self.calls.work, self.calls, self.make_group, Senders(LOOPBACK), retry_s=0.001
        )
        self.links = self.replica.links

    def make_group(self, work: CopyWork) -> EchoGroup:
        self.groups.append(EchoGroup(work, REPORT))
        return self.groups[-1]

    def describe(self) -> list[ModelDescription]:
        return self.replica.describe()


@asynccontextmanager
async def serving(spans: KeptSpans | None = None) -> AsyncIterator[tuple[Tickets, ServeBackend]]:
    """A replica that is ready, and a backend that knows it."""
    tickets = Tickets(None if spans is None else spans.tracing)
    await tickets.replica.start()
    control = FakeControl()
    control.add("tickets", "Router", tickets)
    async with running_backend(control) as backend:
        await until(lambda: states(backend).get("tickets") == ["ready"])
        yield tickets, backend
    tickets.replica.close_now()
    await asyncio.sleep(0)


@pytest.fixture
async def served() -> AsyncIterator[tuple[Tickets, ServeBackend]]:
    async with serving() as both:
        yield both


def entry(num_tokens: int) -> Item:
    return {"input_ids": integer_tensor([1] * num_tokens), "lengths": integer_tensor([num_tokens])}


async def sizes(backend: ServeBackend, *num_tokens: int, queue_timeout_s: float | None = None) -> list[float]:
    request = InferRequest("r", "tickets", [entry(number) for number in num_tokens], queue_timeout_s)
    async with asyncio.timeout(10):
        result = await backend.infer(request)
    return [float(to_array(output["logits"])[0, 0]) for output in result.outputs]


async def test_entries_are_answered_in_their_order(served: tuple[Tickets, ServeBackend]) -> None:
    _tickets, backend = served
    assert await sizes(backend, 3, 1, 7) == [3, 1, 7]
    (model,) = backend.models()
    assert (model.name, model.task, model.labels[0]) == ("tickets", "classify", "billing")


async def test_a_traced_call_is_told_from_its_queue_to_its_end() -> None:
    spans = KeptSpans.make()
    async with serving(spans) as (_tickets, backend):
        for trace in ({}, UNSAMPLED, SAMPLED):
            await backend.infer(InferRequest("r", "tickets", [entry(3), entry(4)], trace=trace))
        await until(lambda: "infer tickets" in spans.names)
    assert spans.names == ["infer tickets", "queue", "run", "step"]
    assert [spans.parent_of(name) for name in spans.names] == ["client", *["infer tickets"] * 3]
    call, queue, run = (spans.named(name) for name in ("infer tickets", "queue", "run"))
    assert [queue.start_time, queue.end_time, run.end_time] == [call.start_time, run.start_time, call.end_time]
    assert call.attributes is not None
    assert call.attributes["rayshard.request.num_entries"] == 2


async def test_what_dies_with_its_shards_is_run_again(served: tuple[Tickets, ServeBackend]) -> None:
    tickets, backend = served
    tickets.groups[0].may_answer.clear()
    running = asyncio.create_task(sizes(backend, 5))
    await until(lambda: tickets.groups[0].num_steps == 1)
    tickets.groups[0].die()
    assert await running == [5]
    assert tickets.replica.copy.epoch == 2
    assert tickets.groups[1].num_steps == 1


async def test_a_request_that_is_given_up_leaves_the_queue(served: tuple[Tickets, ServeBackend]) -> None:
    tickets, backend = served
    tickets.groups[0].may_answer.clear()
    running = asyncio.create_task(sizes(backend, 5))
    await until(lambda: tickets.groups[0].num_steps == 1)
    waiting = asyncio.create_task(sizes(backend, 6))
    await until(lambda: len(tickets.calls._waiting) == 2)
    waiting.cancel()
    await until(lambda: len(tickets.calls._waiting) == 1)
    tickets.groups[0].may_answer.set()
    assert await running == [5]
    assert await sizes(backend, 7) == [7]
    assert tickets.groups[0].num_steps == 2  # the one that was given up has not run


async def test_a_request_that_waits_too_long_for_its_turn_is_refused(served: tuple[Tickets, ServeBackend]) -> None:
    tickets, backend = served
    tickets.groups[0].may_answer.clear()
    running = asyncio.create_task(sizes(backend, 5))
    await until(lambda: tickets.groups[0].num_steps == 1)
    with pytest.raises(QueueFullError, match=r"queue_timeout_s=0\.1"):
        await sizes(backend, 6, queue_timeout_s=0.1)
    tickets.groups[0].may_answer.set()
    assert await running == [5]


async def test_a_request_whose_time_passes_in_the_queue_never_runs(served: tuple[Tickets, ServeBackend]) -> None:
    tickets, backend = served
    tickets.groups[0].may_answer.clear()
    running = asyncio.create_task(sizes(backend, 5))
    await until(lambda: tickets.groups[0].num_steps == 1)
    with pytest.raises(TimeoutExceededError, match="time passed"):
        await backend.infer(InferRequest("late", "tickets", [entry(6)], time_left_s=0.05))
    tickets.groups[0].may_answer.set()
    assert await running == [5]
    assert await sizes(backend, 7) == [7]
    assert tickets.groups[0].num_steps == 2


async def test_a_model_of_another_application_is_refused(served: tuple[Tickets, ServeBackend]) -> None:
    tickets, _backend = served
    with pytest.raises(ConfigError, match="is not served by this application"):
        tickets.calls.work.submit(InferRequest("r", "other", [entry(1)]))


def num_held() -> int:
    """Objects that hold tensors of calls."""
    return sum(type(one) in (InferRequest, InferResult, InferMessage, Job) for one in gc.get_objects())


@pytest.fixture
def num_held_before() -> Iterator[int]:
    """Of other tests, from when on nothing is collected."""
    gc.collect()
    gc.disable()
    yield num_held()
    gc.enable()


async def test_calls_are_freed_when_they_end_and_not_by_a_garbage_collection(
    num_held_before: int, served: tuple[Tickets, ServeBackend]
) -> None:
    tickets, backend = served
    assert await sizes(backend, 3, 4) == [3, 4]
    await until(lambda: num_held() <= num_held_before)

    tickets.groups[0].may_answer.clear()  # the first runs, the others wait
    entries = [entry(4), entry(5)]
    calls = [asyncio.create_task(backend.infer(InferRequest("r", "tickets", entries))) for _ in range(3)]
    late = InferRequest("r", "tickets", entries, time_left_s=0.05)
    with pytest.raises(TimeoutExceededError):
        await backend.infer(late)
    late = InferRequest("r", "tickets", entries, queue_timeout_s=0.05)
    with pytest.raises(QueueFullError):
        await backend.infer(late)
    calls.pop().cancel()
    tickets.groups[0].may_answer.set()
    await asyncio.gather(*calls)
    del calls, late
    await until(lambda: num_held() <= num_held_before)


def test_a_model_gives_no_gradients_when_one_of_its_shards_does_not() -> None:
    calls = make_calls()
    mute = replace(REPORT, gradient_problem="its kernel has none")
    for models, problem in (([REPORT, mute], "its kernel has none"), ([REPORT, REPORT], "")):
        calls.work.scheduler([ShardReport(0, 0, 0.0, [model]) for model in models], None)
        (description,) = calls.describe(1)
        assert description.gradient_problem == problem
