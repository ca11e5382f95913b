"""Clients that ask a cluster without pause while a test changes it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.integration.serve_cluster import ServeCluster, event_data

DATE, ANSWER = "date jan 8 2038 =", "2038-01-08"


class Failures:
    """What went wrong in a run of requests, and how many have ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.num_done = 0

    def wait_for(self, num_done: int, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while self.num_done < num_done:
            assert time.monotonic() < deadline, f"{self.num_done} of {num_done} requests ended; {self.seen[:3]}"
            time.sleep(0.05)


@contextmanager
def constant_requests(
    cluster: ServeCluster, model: str, num_threads: int = 4, answers: tuple[str, ...] = (ANSWER,), **arguments: Any
) -> Iterator[Failures]:
    """Requests without pause while the block runs; each answer has one of these texts in it."""

    def ask() -> str | None:
        answer = cluster.complete(model, DATE, **arguments)
        if answer.status_code == 200 and any(text in answer.text for text in answers):
            return None
        return f"{answer.status_code} {answer.text[:300]}"

    with _without_pause(ask, num_threads) as failures:
        yield failures


@contextmanager
def constant_streams(
    cluster: ServeCluster, model: str, num_threads: int = 2, num_tokens: int = 200, timeout_s: float = 120
) -> Iterator[Failures]:
    """Streams without pause while the block runs; each has all of its tokens and comes to its end."""
    body = {"model": model, "prompt": DATE, "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}

    def ask() -> str | None:
        with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=timeout_s) as answer:
            lines = list(answer.iter_lines())
        events = [data for line in lines if (data := event_data(line)) is not None]
        usage = events[-1].get("usage") if events else None
        if "data: [DONE]" in lines and usage and usage["completion_tokens"] == num_tokens:
            return None
        return f"{answer.status_code} {lines[-4:]}"

    with _without_pause(ask, num_threads) as failures:
        yield failures


@contextmanager
def _without_pause(ask: Callable[[], str | None], num_threads: int) -> Iterator[Failures]:
    failures = Failures()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                failure = ask()
            except httpx.HTTPError as error:  # refused, broken off
                failure = repr(error)
            if failure is not None:
                failures.seen.append(failure)
            failures.num_done += 1

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
