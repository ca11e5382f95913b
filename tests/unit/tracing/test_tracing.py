"""Spans and their parents; what an error may say; which traces are kept; ids in the log."""

import asyncio
import json
import logging
from io import StringIO

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from serve_app.errors import QueueFullError
from serve_app.observability import JsonFormatter
from serve_app.tracing.attributes import ERROR_TYPE, IS_CANCELLED
from serve_app.tracing.trace_ids import TraceIds, log_trace_ids
from serve_app.tracing.tracing import add_event, carried, follow, part, serving
from tests.spans import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED, KeptSpans, span_texts, trace_id_of


@pytest.fixture
def spans() -> KeptSpans:
    return KeptSpans.make()


def test_parts_hang_below_what_the_task_works_on_and_the_client_s_span_is_above(spans: KeptSpans) -> None:
    with spans.tracing.serving("served", SAMPLED, {}), spans.tracing.part("outer"), part(spans.tracing, "inner"):
        pass
    assert [spans.parent_of(name) for name in ("inner", "outer", "served")] == ["outer", "served", "client"]
    assert {trace_id_of(span) for span in spans.all} == {TRACE_ID}


async def test_tasks_that_are_started_inside_belong_to_it(spans: KeptSpans) -> None:
    async def run() -> dict[str, str]:
        with spans.tracing.part("job"):
            return carried()

    with spans.tracing.serving("served", {}, {}):
        carrier = await asyncio.create_task(run())
    assert spans.parent_of("job") == "served"
    assert spans.parent_of("served") is None
    with spans.tracing.serving("elsewhere", carrier, {}):
        pass
    assert spans.parent_of("elsewhere") == "job"
    assert carried() == {}


@pytest.mark.parametrize(
    "carrier",
    [
        {},
        {"traceparent": "nonsense"},
        {"traceparent": f"00-{'0' * 32}-{SPAN_ID}-01"},
        {"traceparent": f"ff-{TRACE_ID}-{SPAN_ID}-01"},
    ],
)
def test_a_context_that_is_none_begins_a_trace(spans: KeptSpans, carrier: dict[str, str]) -> None:
    with spans.tracing.serving("served", carrier, {}):
        pass
    assert spans.parent_of("served") is None
    assert trace_id_of(spans.named("served")) != TRACE_ID


def test_what_the_client_does_not_sample_is_passed_on_and_not_kept(spans: KeptSpans) -> None:
    with spans.tracing.serving("served", UNSAMPLED, {}), spans.tracing.part("below"):
        assert carried()["traceparent"].startswith(f"00-{TRACE_ID}-")
        assert carried()["traceparent"].endswith("-00")
    assert spans.all == []


def test_a_process_behind_others_begins_no_trace() -> None:
    spans = KeptSpans.make(ParentBased(ALWAYS_OFF))
    for carrier in ({}, UNSAMPLED, SAMPLED):
        with spans.tracing.serving(f"served {len(carrier)}", carrier, {}):
            pass
    assert [trace_id_of(span) for span in spans.all] == [TRACE_ID]


def test_the_client_s_tracestate_goes_on(spans: KeptSpans) -> None:
    with spans.tracing.serving("served", {**SAMPLED, "tracestate": "vendor=1"}, {}):
        assert carried()["tracestate"] == "vendor=1"


def test_an_error_is_told_by_its_kind_and_not_by_what_it_says(spans: KeptSpans) -> None:
    with (
        pytest.raises(QueueFullError),
        spans.tracing.serving("served", SAMPLED, {}),
        spans.tracing.part("below"),
    ):
        raise QueueFullError("the prompt was: canary-4711")
    for span in spans.all:
        assert span.attributes == {ERROR_TYPE: "QueueFullError"}
        assert not span.status.is_ok
        assert span.status.description is None
        assert span.events == ()
    assert "canary" not in span_texts(spans.all)


async def test_what_is_given_up_is_no_error(spans: KeptSpans) -> None:
    async def run() -> None:
        with spans.tracing.part("work"):
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert spans.named("work").attributes == {IS_CANCELLED: True}
    assert spans.named("work").status.is_unset


def test_where_nobody_traces_nothing_is_made(spans: KeptSpans) -> None:
    with part(None, "work") as span, serving(None, "served", SAMPLED, {}) as served:
        assert (span, served, carried()) == (None, None, {})
        add_event("resume", {})
    with serving(spans.tracing, "served", {}, {}) as served:  # whoever asks does not trace
        assert served is None


async def test_log_lines_name_the_trace_of_their_request(spans: KeptSpans) -> None:
    logger, stream = logging.getLogger("serve_app"), StringIO()
    before = logger.handlers
    logger.handlers = [logging.StreamHandler(stream)]
    logger.handlers[0].setFormatter(JsonFormatter())
    log_trace_ids()

    async def follows() -> None:
        follow(SAMPLED)
        logger.warning("late id=%s", "r")

    try:
        logger.warning("before")
        with spans.tracing.serving("served", UNSAMPLED, {}):
            span_id = trace.format_span_id(trace.get_current_span().get_span_context().span_id)
            logger.warning("within")
        await asyncio.create_task(follows())
        logger.warning("after")
    finally:
        logger.handlers = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["message"], line.get("trace_id"), line.get("span_id")) for line in lines] == [
        ("before", None, None),
        ("within", TRACE_ID, span_id),
        ("late id=r", TRACE_ID, SPAN_ID),
        ("after", None, None),
    ]
    assert all(not isinstance(one, TraceIds) for handler in before for one in handler.filters)
