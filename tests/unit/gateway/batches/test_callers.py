"""A batch's requests are its key's, come last, and leave half of the key's minute to others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.errors import RateLimitedError, RequestError
from serve_app.gateway.api_keys import ApiKeys
from serve_app.gateway.batches.callers import BatchCaller, caller_of, owner
from serve_app.gateway.caller import CALLER, priority, reserved
from serve_app.gateway.key_file import new_key


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def keys_of(path: Path, clock: Clock, *options: str) -> ApiKeys:
    path.write_text("".join(f"{new_key(one)[1]}\n" for one in options))
    return ApiKeys(path, clock)


def caller(keys: ApiKeys, name: str) -> BatchCaller:
    found = caller_of(f"key-{name}", keys)
    assert found is not None
    return found


@contextmanager
def calling(one: BatchCaller) -> Iterator[None]:
    """While a request of a batch's runs."""
    token = CALLER.set(one)
    try:
        yield
    finally:
        CALLER.reset(token)


def test_owners_are_keys_where_keys_are_used_and_else_everybody(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Clock(), "name=one models=a", "name=open")
    assert caller(keys, "one").name == "one"
    assert caller(keys, "one").may_use("a")
    assert not caller(keys, "one").may_use("b")
    assert caller_of("open", keys) is None
    assert caller_of("key-two", keys) is None
    assert caller_of("key-one", None) is None
    everybody = caller_of("open", None)
    assert everybody is not None
    assert everybody.may_use("b")
    assert owner() == "open"
    with calling(caller(keys, "open")):
        assert owner() == "key-open"


@pytest.mark.parametrize("limit", [1, 2, 5, 60])
def test_half_of_a_minutes_requests_is_left_to_others(tmp_path: Path, limit: int) -> None:
    clock = Clock()
    keys = keys_of(tmp_path / "keys", clock, f"name=one requests_per_minute={limit}")
    one, num_begun = caller(keys, "one"), 0
    while one.seconds_until_free() == 0:
        num_begun += 1
    assert num_begun == max(1, limit - limit // 2)
    holder = keys.holder_named("one")
    assert holder is not None
    for _ in range(limit - num_begun):
        holder.enter()
    with pytest.raises(RateLimitedError):
        holder.enter()
    wait_s = one.seconds_until_free()
    assert 0 < wait_s <= 60
    clock.now_s += wait_s
    assert one.seconds_until_free() == 0


def test_a_line_begins_while_half_of_the_tokens_is_there(tmp_path: Path) -> None:
    clock = Clock()
    one = caller(keys_of(tmp_path / "keys", clock, "name=one tokens_per_minute=100"), "one")
    assert one.seconds_until_free() == 0
    with calling(one), reserved(20, 40) as use:
        use.num_tokens = 51
    assert one.seconds_until_free() == pytest.approx(0.6)
    with pytest.raises(RateLimitedError), calling(one), reserved(30, 20):
        pass
    clock.now_s += 1.0
    assert one.seconds_until_free() == 0


def test_requests_have_the_last_priority_and_no_other(tmp_path: Path) -> None:
    for one in (BatchCaller(None), caller(keys_of(tmp_path / "keys", Clock(), "name=one best_priority=-9"), "one")):
        with calling(one):
            assert (priority(None), priority(1000)) == (1000, 1000)
            with pytest.raises(RequestError):
                priority(0)


def test_without_keys_tokens_are_not_counted() -> None:
    with calling(BatchCaller(None)), reserved(10**9, 10**9) as use:
        use.num_tokens = 1
    assert BatchCaller(None).tokens_per_minute is None
    assert BatchCaller(None).seconds_until_free() == 0
