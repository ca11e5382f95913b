"""What is known of the time that steps take."""

import pytest

from serve_app.scheduling.step_times import BatchTimes, RecentMean, StepTimes
from serve_app.types.plans import SeenRates


def test_a_mean_forgets_what_is_long_ago() -> None:
    mean = RecentMean()
    assert mean.value is None
    for value in [100.0] * 20 + [1.0] * 60:
        mean.take(value)
    assert mean.value == pytest.approx(1.0, abs=0.5)


def test_a_prompts_tokens_cost_what_they_add_to_a_step() -> None:
    times = StepTimes()
    now_s = 5.0
    for number in range(40):
        num_prompt_tokens = 50 if number % 4 == 3 else 0
        sent_s, now_s = now_s, now_s + 0.010 + 0.001 * num_prompt_tokens
        times.take(sent_s, now_s, num_prompt_tokens)
    assert times.decoding_s == pytest.approx(0.010)
    assert times.prompt_token_s == pytest.approx(0.001)


def test_steps_in_flight_together_share_their_time_and_pauses_do_not_count() -> None:
    times = StepTimes()
    for number in range(1, 20):
        times.take(0.01 * number - 0.025, 0.01 * number, 0)  # three at a time
    assert times.decoding_s == pytest.approx(0.01, rel=0.2)
    times.take(500.0, 500.01, 0)
    assert times.decoding_s == pytest.approx(0.01, rel=0.2)


def test_a_process_that_stood_still_is_no_measure_and_steps_that_have_grown_slow_are() -> None:
    times = StepTimes()
    now_s = 0.0
    for step_s in [0.01] * 20 + [5.0]:
        times.take(now_s, now_s + step_s, 0)
        now_s += step_s
    assert times.decoding_s == pytest.approx(0.013, rel=0.2)
    for _ in range(40):
        times.take(now_s, now_s + 0.2, 0)
        now_s += 0.2
    assert times.decoding_s == pytest.approx(0.2, rel=0.1)


def test_nothing_is_told_before_enough_was_measured_or_without_a_clock() -> None:
    times, batches = StepTimes(), BatchTimes()
    for number in range(7):
        times.take(number, number + 0.5, 0)
        batches.take(number, number + 0.5, is_half_full=True)
    assert times.decoding_s is None
    assert batches.full_step_s is None
    for _ in range(50):
        times.take(0.0, 0.0, 0)
        batches.take(0.0, 0.0, is_half_full=True)
    assert times.decoding_s is None
    assert batches.full_step_s is None


def test_full_steps_count_more_than_small_ones() -> None:
    times = BatchTimes()
    for number in range(20):
        times.take(number, number + (0.5 if number % 5 == 0 else 0.1), is_half_full=number % 5 == 0)
    assert times.full_step_s == pytest.approx(0.5)


def test_rates_are_those_of_steps_with_prompts_and_of_steps_without() -> None:
    times = StepTimes()
    assert times.seen == SeenRates()
    now_s = 5.0
    for number in range(80):
        is_prompt = number % 4 == 3
        sent_s, now_s = now_s, now_s + (0.050 if is_prompt else 0.010)
        times.take(sent_s, now_s, 100 if is_prompt else 0, 3)
    seen = times.seen
    assert seen.prefill_tokens_per_s == pytest.approx(2000)
    assert seen.decode_tokens_per_s == pytest.approx(300)
    assert seen.decode_sequences == pytest.approx(3)
