"""The share of a copy's working time in which its shards wait."""

import pytest

from serve_app.deployments.bubble import BubbleMeter, mean_share, stage_bubbles


def test_time_without_steps_counts_for_nothing() -> None:
    meter = BubbleMeter([0, 1], 100.0)
    meter.hear(0, 3.0, 100.0)
    meter.hear(1, 0.0, 100.0)
    assert meter.shares() == [None, None]
    meter.note(150.0, is_working=True)
    meter.note(152.0, is_working=False)
    meter.note(190.0, is_working=True)
    meter.hear(0, 6.0, 192.0)
    meter.hear(1, 1.0, 192.0)
    assert meter.shares() == [0.25, 0.75]
    meter.note(192.0, is_working=False)
    meter.hear(0, 6.0, 500.0)
    assert meter.shares() == [0.25, 0.75]


def test_only_the_last_seconds_count() -> None:
    meter = BubbleMeter([0], 0.0)
    meter.note(0.0, is_working=True)
    for second in range(40):
        meter.hear(0, 0.5 * min(second, 20) + 0.9 * max(second - 20, 0), float(second))
    assert meter.shares() == [pytest.approx(0.1)]


def test_a_shard_that_says_nothing_or_has_hardly_worked_has_no_share() -> None:
    meter = BubbleMeter([0, 1], 0.0)
    meter.note(0.0, is_working=True)
    meter.hear(0, 0.0, 0.0)
    meter.hear(0, 0.1, 0.2)
    assert meter.shares() == [None, None]
    meter.hear(0, 5.0, 1.0)  # more than the Router's clock says: no share is below 0
    assert meter.shares() == [0.0, None]


def test_a_stage_has_the_mean_of_its_ranks() -> None:
    assert stage_bubbles([0.1, 0.3, None, 0.5], [0, 0, 1, 1]) == [0.2, None]
    assert stage_bubbles([], [0, 1]) == []
    assert mean_share([0.2, 0.4]) == pytest.approx(0.3)
    assert mean_share([0.2, None]) is None
    assert mean_share([]) is None


def test_seconds_are_summed_over_stages_of_ranks_the_mean_and_over_epochs() -> None:
    meter = BubbleMeter([0, 0, 1, 1], 0.0)
    for shard in range(4):
        meter.hear(shard, 7.0, 0.0)
    meter.note(10.0, is_working=True)
    for shard, busy_s in enumerate((8.0, 8.0, 10.0, 10.0)):
        meter.hear(shard, busy_s, 14.0)
    assert (meter.busy_s, meter.idle_s) == (1.0 + 3.0, 3.0 + 1.0)
    meter.lose(15.0)
    assert meter.shares() == [None] * 4
    for shard in range(4):
        meter.hear(shard, 0.0, 50.0)  # of other processes
    meter.note(50.0, is_working=True)
    for shard in range(4):
        meter.hear(shard, 1.0, 52.0)
    assert (meter.busy_s, meter.idle_s) == (4.0 + 2.0, 4.0 + 2.0)
