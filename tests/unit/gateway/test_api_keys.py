"""What a key may use of requests and tokens, and a file of keys that changes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.errors import RateLimitedError, TooManyTokensError, UnauthenticatedError
from serve_app.gateway.api_keys import ApiKeys, KeyHolder
from serve_app.gateway.caller import CALLER
from tests.api_keys import bearer, write_keys


@dataclass
class Clock:
    """Seconds that a test sets."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """A test that uses a key outside of a request leaves no caller behind."""
    yield
    CALLER.set(None)


def holder(path: Path, options: str, clock: Clock) -> tuple[ApiKeys, dict[str, str]]:
    (key,) = write_keys(path, f"name=web {options}")
    return ApiKeys(path, clock), bearer(key)


def enter(keys: ApiKeys, headers: dict[str, str]) -> KeyHolder:
    with keys.used([headers["authorization"]]) as used:
        return used


def test_requests_of_a_minute_are_refilled_evenly(tmp_path: Path) -> None:
    clock = Clock()
    keys, headers = holder(tmp_path / "keys", "requests_per_minute=6", clock)
    for _ in range(6):
        enter(keys, headers)
    with pytest.raises(RateLimitedError, match="has used its requests of this minute") as caught:
        enter(keys, headers)
    assert caught.value.retry_after_s == pytest.approx(10)
    clock.now_s += 10.1
    enter(keys, headers)
    with pytest.raises(RateLimitedError):
        enter(keys, headers)


def test_tokens_are_reserved_before_and_settled_after(tmp_path: Path) -> None:
    clock = Clock()
    keys, headers = holder(tmp_path / "keys", "tokens_per_minute=60", clock)
    used = enter(keys, headers)
    first = used.reserve(10, 40)
    with pytest.raises(RateLimitedError, match="may use 20 tokens, more than key web has left") as caught:
        used.reserve(10, 10)
    assert caught.value.retry_after_s == pytest.approx(10)
    used.settle(first, 15)
    second = used.reserve(10, 35)
    used.settle(second, 145)  # not known before: owed
    with pytest.raises(RateLimitedError, match="has used its tokens of this minute") as caught:
        enter(keys, headers)
    assert caught.value.retry_after_s == pytest.approx(101)
    clock.now_s += 101
    enter(keys, headers)


def test_what_is_given_back_makes_no_more_than_a_minute_s(tmp_path: Path) -> None:
    clock = Clock()
    keys, headers = holder(tmp_path / "keys", "tokens_per_minute=60", clock)
    used = enter(keys, headers)
    taken = used.reserve(0, 60)
    clock.now_s += 60
    used.settle(taken, 0)
    used.reserve(0, 60)
    with pytest.raises(RateLimitedError):
        used.reserve(0, 1)


@pytest.mark.parametrize(
    ("num_input", "num_output", "advice"),
    [(3, 300, r"ask for at most 47 \(max_tokens, times n\)"), (60, 1, "send less text"), (51, 0, "send less text")],
)
def test_more_than_a_minute_s_tokens_are_refused_for_good(
    tmp_path: Path, num_input: int, num_output: int, advice: str
) -> None:
    keys, headers = holder(tmp_path / "keys", "tokens_per_minute=50", Clock())
    with pytest.raises(TooManyTokensError, match=f"key web may use 50 in a minute; {advice}"):
        enter(keys, headers).reserve(num_input, num_output)


@pytest.mark.parametrize("options", ["", "requests_per_minute=9"])
def test_without_a_limit_any_number_of_tokens_is_reserved(tmp_path: Path, options: str) -> None:
    keys, headers = holder(tmp_path / "keys", options, Clock())
    used = enter(keys, headers)
    used.settle(used.reserve(10**9, 10**9), 10**9)
    enter(keys, headers)


def test_a_changed_file_is_read_again_and_what_was_used_stays_used(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "keys"
    keys, headers = holder(path, "requests_per_minute=2 concurrency=1", clock)
    with keys.used([headers["authorization"]]):
        change(path, path.read_text().replace("concurrency=1", "concurrency=2"), clock)
        enter(keys, headers)  # beside the first
        with pytest.raises(RateLimitedError, match="requests of this minute"):
            enter(keys, headers)
    change(path, path.read_text().replace("requests_per_minute=2", "requests_per_minute=5"), clock)
    assert enter(keys, headers).num_running == 0
    change(path, "broken", clock)
    enter(keys, headers)  # those before are in force
    change(path, "", clock)
    with pytest.raises(UnauthenticatedError):
        enter(keys, headers)


def change(path: Path, text: str, clock: Clock) -> None:
    path.write_text(text)
    os.utime(path, ns=(0, int(clock.now_s) * 10**9))
    clock.now_s += 2
