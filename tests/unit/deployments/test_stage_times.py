"""What the stages of a copy have computed, over the lives of its shards."""

from serve_app.deployments.stage_times import StageTimes
from serve_app.types.models import StageCounts

STAGES = [0, 0, 1, 1]  # two ranks each


def test_nothing_is_known_before_a_shard_has_told_it() -> None:
    assert StageTimes().counts(STAGES) == []


def test_the_rank_that_has_computed_most_counts_for_its_stage() -> None:
    times = StageTimes()
    for shard, (num_steps, busy_s) in enumerate([(10, 1.0), (9, 2.0), (8, 0.5), (8, 0.25)]):
        times.hear(shard, num_steps, busy_s)
    assert times.counts(STAGES) == [StageCounts(10, 2.0), StageCounts(8, 0.5)]


def test_a_shard_that_begins_anew_goes_on_from_what_it_had() -> None:
    times = StageTimes()
    for num_steps, busy_s in [(4, 1.0), (6, 1.5), (1, 0.25), (3, 0.75), (2, 1.0)]:
        times.hear(0, num_steps, busy_s)  # a new process, then the same process with a new loop
    assert times.counts([0]) == [StageCounts(11, 2.5)]


def test_a_stage_without_a_word_counts_nothing_yet() -> None:
    times = StageTimes()
    times.hear(1, 5, 1.0)
    assert times.counts([0, 1]) == [StageCounts(), StageCounts(5, 1.0)]
