"""Long streams of the demo model, each read by a thread of its own."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.integration.serve_cluster import ServeCluster, event_data

LONG: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "stream": True}
DATE = "date jan 8 2038 ="


@dataclass
class Stream:
    """One stream, read by a thread of its own."""

    seed: int
    num_tokens: int
    text: str = ""
    num_events: int = 0
    error: str | None = None
    is_done: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


def start_streams(cluster: ServeCluster, count: int, num_tokens: int = LONG["max_tokens"]) -> list[Stream]:
    """Long streams that have all begun."""
    streams = [Stream(seed, num_tokens) for seed in range(count)]
    for stream in streams:
        threading.Thread(target=read_stream, args=(cluster.url, stream), daemon=True).start()
    cluster.wait_until(lambda: all(stream.num_events for stream in streams), 60, "the streams' start")
    return streams


def read_stream(url: str, stream: Stream) -> None:
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=drawn_body(stream), timeout=60) as answer:
            for line in answer.iter_lines():
                data = event_data(line)
                stream.num_events += data is not None
                stream.is_done |= line == "data: [DONE]"
                if data is not None and "error" in data:
                    stream.error = data["error"]["type"]
                elif data is not None:
                    stream.text += data["choices"][0]["text"]
    finally:
        stream.ended.set()


def wait_for_texts(streams: list[Stream], timeout_s: float) -> list[str]:
    """What the streams have said; fails when one did not come to its end."""
    assert wait_for_ends(streams, timeout_s) == ["done"] * len(streams)
    return [stream.text for stream in streams]


def undisturbed_texts(cluster: ServeCluster, count: int, num_tokens: int) -> list[str]:
    """What that many streams say when nothing happens."""
    return wait_for_texts(start_streams(cluster, count, num_tokens), 120)


def wait_for_ends(streams: list[Stream], timeout_s: float) -> list[str]:
    """How the streams have ended; fails when one hangs."""
    deadline = time.monotonic() + timeout_s
    for stream in streams:
        assert stream.ended.wait(max(0.0, deadline - time.monotonic())), "a stream hangs"
    return [stream.error or ("done" if stream.is_done else "broken off") for stream in streams]


def drawn_body(stream: Stream) -> dict[str, Any]:
    """Every token is drawn: a text that goes on with anything but the next one shows."""
    return body_of({**LONG, "temperature": 1, "seed": stream.seed, "max_tokens": stream.num_tokens})


def body_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"model": "demo", "prompt": DATE, "temperature": 0, **arguments}
