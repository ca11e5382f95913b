"""First tokens and gaps, by a clock of the test's own."""

from collections.abc import Callable

import pytest

from serve_app.metrics.tokens import TokenMeters, TokenTimes, UntimedTokens


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meters() -> TokenMeters:
    return TokenMeters()


@pytest.fixture
def see(clock: Clock, meters: TokenMeters) -> Callable[[float, int, int], None]:
    """Lets time pass, then tokens come, to one of two choices of a prompt that came at 99."""
    times = TokenTimes(meters, 2, 99.0, clock)

    def see(passed_s: float, choice: int, num_tokens: int) -> None:
        clock.now_s += passed_s
        times.see(choice, num_tokens)

    return see


def test_the_first_token_of_a_prompt_is_counted_once(
    see: Callable[[float, int, int], None], meters: TokenMeters
) -> None:
    see(1.0, 0, 1)
    see(5.0, 1, 1)
    assert (meters.first_token.count, meters.first_token.sum_s) == (1, 2.0)
    assert meters.gaps.count == 0, "nothing came before the first token of the other choice"
    assert meters.num_tokens == 2


def test_each_choice_has_gaps_of_its_own(see: Callable[[float, int, int], None], meters: TokenMeters) -> None:
    for passed_s, choice in ((0.0, 0), (0.0, 1), (0.25, 0), (0.5, 1)):
        see(passed_s, choice, 1)
    assert (meters.gaps.count, meters.gaps.sum_s) == (2, 0.25 + 0.75)


def test_tokens_that_come_together_share_the_time(see: Callable[[float, int, int], None], meters: TokenMeters) -> None:
    see(0.0, 0, 3)
    assert meters.num_tokens == 3
    see(0.6, 0, 3)
    assert meters.num_tokens == 6
    assert meters.gaps.sum_s == pytest.approx(0.6)
    counts = meters.gaps.counts().bucket_counts
    assert counts[0] == 2, "two of the first three came at once"
    assert sum(counts[10:14]) == 3, "three gaps of 0.2 s"


def test_tokens_that_are_not_timed_are_counted(meters: TokenMeters) -> None:
    tokens = UntimedTokens(meters)
    tokens.see(0, 1)
    tokens.see(1, 4)
    assert meters.num_tokens == 5
    assert (meters.first_token.count, meters.gaps.count, meters.num_first_tokens) == (0, 0, 0)
