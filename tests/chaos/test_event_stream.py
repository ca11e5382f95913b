"""What is read off the events of one chat."""

import json
from typing import Any

from tests.chaos.event_stream import Answer, EventStream


def piece(text: str | None, choice: int = 0, **more: Any) -> str:
    delta = {"role": "assistant"} if text is None else {"content": text}
    return "data: " + json.dumps({"choices": [{"index": choice, "delta": delta}], **more})


def read(*lines: tuple[float, str], end_s: float = 10.0, failure: str | None = None) -> Answer:
    stream = EventStream(sent_s=0.0)
    for time_s, line in lines:
        stream.take(line, time_s)
    return stream.answer(end_s, failure)


def test_texts_are_joined_by_choice_and_the_servers_count_is_kept() -> None:
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 4}}'
    pieces = [piece(None), piece("a"), piece("x", choice=1), "", piece("b"), piece("y", choice=1), usage]
    answer = read(*((1.0, line) for line in [*pieces, "data: [DONE]"]))
    assert answer == Answer({0: "ab", 1: "xy"}, 4, None, 9.0)


def test_a_pause_lasts_from_event_to_event_whatever_comments_come_between() -> None:
    stream = EventStream(sent_s=0.0)
    assert stream.take(piece("a"), 1.0)
    assert not stream.take(": still here", 3.0)
    assert not stream.take("", 3.0)
    assert stream.take(piece("b"), 6.0)
    assert stream.take("data: [DONE]", 7.0)
    assert stream.answer(7.5).longest_pause_s == 5.0


def test_waiting_for_the_first_event_and_for_an_end_that_does_not_come_are_pauses() -> None:
    assert read((4.0, piece("a")), (5.0, "data: [DONE]"), end_s=5.0).longest_pause_s == 4.0
    assert read((1.0, piece("a")), end_s=31.0).longest_pause_s == 30.0


def test_a_stream_without_done_is_cut_and_an_error_event_names_its_kind() -> None:
    assert read((1.0, piece("a"))).failure == "cut"
    error = 'data: {"error": {"type": "shard_lost", "message": "..."}}'
    assert read((1.0, piece("a")), (2.0, error)).failure == "error shard_lost"
    assert read((1.0, error), (2.0, "data: [DONE]")).failure == "error shard_lost"
    assert read(failure="503 unavailable").failure == "503 unavailable"
