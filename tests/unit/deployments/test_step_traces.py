"""What a copy of a model tells of a traced call: waiting, prefill, decode, timed steps; of any other nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.failover import FailoverConfig
from serve_app.errors import QueueFullError
from serve_app.tracing import attributes as names
from tests.fakes_group import FakeGroups
from tests.fakes_serve import FakeControl, states, until
from tests.generator_replica import READY, Generator, expected, request_of, slow_down, tokens_of
from tests.spans import SAMPLED, UNSAMPLED, KeptSpans, trace_id_of

OF_CALL = ["decode", "generate demo", "prefill", "queue"]


@pytest.fixture
def spans() -> KeptSpans:
    return KeptSpans.make()


@pytest.fixture
async def generator(spans: KeptSpans) -> AsyncIterator[Generator]:
    made = Generator("a", FakeGroups(), tracing=spans.tracing)
    await made.replica.start()
    yield made
    made.replica.close_now()
    await asyncio.sleep(0)


@pytest.fixture
async def backend(generator: Generator, spans: KeptSpans) -> AsyncIterator[ServeBackend]:
    control = FakeControl()
    control.add("demo", "Router", generator)
    backend = ServeBackend(control, failover=FailoverConfig(), tracing=spans.tracing)
    await backend.find_running_models()
    await until(lambda: states(backend) == READY)
    yield backend
    backend.close()
    await asyncio.sleep(0)


async def test_a_call_is_told_from_its_queue_to_its_last_token(backend: ServeBackend, spans: KeptSpans) -> None:
    request = request_of(1, 12)
    with spans.tracing.serving("POST /v1/completions", SAMPLED, {}):
        assert await tokens_of(backend, request) == expected(request)
    await until(lambda: "generate demo" in spans.names)
    parents = {name: spans.parent_of(name) for name in [*OF_CALL, "step", "text_completion demo"]}
    assert parents == {
        "text_completion demo": "POST /v1/completions",
        "generate demo": "text_completion demo",
        "queue": "generate demo",
        "prefill": "generate demo",
        "decode": "generate demo",
        "step": "generate demo",
    }
    assert len({trace_id_of(span) for span in spans.all}) == 1
    call, queue, prefill, decode = (spans.named(name) for name in ("generate demo", "queue", "prefill", "decode"))
    times = [call.start_time, queue.end_time, prefill.end_time, decode.end_time]
    assert times == [queue.start_time, prefill.start_time, decode.start_time, call.end_time]
    assert times == sorted(times, key=lambda one: one or 0)
    assert call.attributes is not None
    assert call.attributes[names.OUTPUT_TOKENS] == 12
    assert call.attributes[names.INPUT_TOKENS] == 3
    assert call.attributes[names.FINISH_REASONS] == ("length",)
    assert call.attributes[names.COPY] == "a"


async def test_a_timed_step_tells_how_long_each_stage_has_computed(
    backend: ServeBackend, generator: Generator, spans: KeptSpans
) -> None:
    slow_down(generator, 0.004)
    with spans.tracing.serving("client", SAMPLED, {}):
        await tokens_of(backend, request_of(1, 3))
    await until(lambda: "generate demo" in spans.names)
    step = spans.named("step")
    assert step.attributes is not None
    assert step.attributes[names.STEP_TOKENS] == 3
    assert step.attributes[names.STEP_ROWS] == 1
    busy_s = step.attributes[names.STAGE_BUSY]
    assert isinstance(busy_s, tuple)
    assert len(busy_s) == 2
    assert all(isinstance(stage_s, float) and 0.004 <= stage_s < 1 for stage_s in busy_s)


async def test_every_second_one_more_step_of_a_long_answer_is_timed(
    backend: ServeBackend, generator: Generator, spans: KeptSpans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.deployments.step_traces.TIMED_INTERVAL_S", 0.02)
    slow_down(generator, 0.005)
    with spans.tracing.serving("client", SAMPLED, {}):
        await tokens_of(backend, request_of(1, 40))
    await until(lambda: "generate demo" in spans.names)
    num_steps = spans.names.count("step")
    assert 3 <= num_steps <= 30
    assert sorted({span.attributes[names.STEP_TOKENS] for span in spans.all if span.name == "step"}) == [1, 3]  # type: ignore[index,type-var]


async def test_calls_of_traces_that_are_not_sampled_leave_nothing(
    backend: ServeBackend, generator: Generator, spans: KeptSpans
) -> None:
    with spans.tracing.serving("client", UNSAMPLED, {}):
        await tokens_of(backend, request_of(1, 5))
    assert generator.calls.work.traces is not None
    assert not generator.calls.work.traces._calls
    assert spans.all == []


async def test_what_ends_for_want_of_a_place_says_so(
    backend: ServeBackend, generator: Generator, spans: KeptSpans
) -> None:
    slow_down(generator, 0.05)
    others = [asyncio.create_task(tokens_of(backend, request_of(seed, 40))) for seed in range(1, 5)]
    await until(lambda: generator.calls.work.load().num_running == 4)
    with spans.tracing.serving("client", SAMPLED, {}), pytest.raises(QueueFullError):
        await tokens_of(backend, request_of(9, 5, queue_timeout_s=0.05))
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    (call,) = [one for one in spans.all if one.name == "generate demo" and trace_id_of(one) in SAMPLED["traceparent"]]
    assert not call.status.is_ok
    assert call.attributes is not None
    assert call.attributes[names.ERROR_TYPE] == "QueueFullError"
    below = [one.name for one in spans.all if one.parent and one.parent.span_id == call.context.span_id]
    assert below == ["queue"]


async def test_a_stream_that_goes_on_elsewhere_stays_one_trace(
    backend: ServeBackend, generator: Generator, spans: KeptSpans
) -> None:
    slow_down(generator)
    request = request_of(1, 30)
    with spans.tracing.serving("client", SAMPLED, {}):
        running = asyncio.create_task(tokens_of(backend, request))
        await until(lambda: any(one.num_outputs > 3 for one in generator.calls._calls))
        generator.groups.made[-1].die()
        assert await running == expected(request)
    lost, resumed = [one for one in spans.all if one.name == "generate demo"]
    assert {trace_id_of(one) for one in spans.all} == {trace_id_of(lost)}
    assert not lost.status.is_ok
    assert resumed.status.is_ok or resumed.status.is_unset
    assert resumed.attributes is not None
    num_done = resumed.attributes[names.NUM_DONE_TOKENS]
    assert isinstance(num_done, int)
    assert num_done > 3
    client = spans.named("text_completion demo")
    (event,) = client.events
    assert event.name == "resume"
    assert event.attributes is not None
    assert event.attributes[names.OUTPUT_TOKENS] == num_done
    assert client.attributes is not None
    assert client.attributes[names.OUTPUT_TOKENS] == 30
