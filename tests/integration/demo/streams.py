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

    num_events: int = 0
    error: str | None = None
    is_done: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


def start_streams(cluster: ServeCluster, count: int) -> list[Stream]:
    """Long streams that have all begun."""
    streams = [Stream() for _ in range(count)]
    for stream in streams:
        threading.Thread(target=read_stream, args=(cluster.url, stream), daemon=True).start()
    cluster.wait_until(lambda: all(stream.num_events for stream in streams), 30, "the streams' start")
    return streams


def read_stream(url: str, stream: Stream) -> None:
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=body_of(LONG), timeout=60) as answer:
            for line in answer.iter_lines():
                data = event_data(line)
                stream.num_events += data is not None
                stream.is_done |= line == "data: [DONE]"
                if data is not None and "error" in data:
                    stream.error = data["error"]["type"]
    finally:
        stream.ended.set()


def wait_for_ends(streams: list[Stream], timeout_s: float) -> list[str]:
    """How the streams have ended; fails when one hangs."""
    deadline = time.monotonic() + timeout_s
    for stream in streams:
        assert stream.ended.wait(max(0.0, deadline - time.monotonic())), "a stream hangs"
    return [stream.error or ("done" if stream.is_done else "broken off") for stream in streams]


def body_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"model": "demo", "prompt": DATE, "temperature": 0, **arguments}
