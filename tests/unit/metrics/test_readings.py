"""Readings as samples: a histogram's buckets are cumulative, and each has its place."""

import pytest

from serve_app.metrics.families import QUEUE, RUNNING
from serve_app.metrics.readings import Reading, samples_of
from serve_app.metrics.times import Times

AT = ("demo", "copy1")


def test_a_gauge_is_one_sample() -> None:
    (sample,) = samples_of([Reading(RUNNING, AT, 3)])
    assert (sample.name, sample.labels, sample.value) == (RUNNING.name, {"model": "demo", "copy": "copy1"}, 3)


def test_buckets_are_cumulative_and_a_bound_belongs_to_its_own() -> None:
    times = Times(QUEUE.bounds_s)
    for seconds in (0.0, 0.001, 0.002, 80.0, 1000.0):
        times.add(seconds)
    samples = list(samples_of([Reading(QUEUE, AT, times.counts())]))
    buckets = {one.labels["le"]: one.value for one in samples if one.name.endswith("_bucket")}
    assert list(buckets) == [*map(str, QUEUE.bounds_s), "+Inf"]
    assert (buckets["0.001"], buckets["0.0025"], buckets["40.0"], buckets["80.0"], buckets["+Inf"]) == (2, 3, 3, 4, 5)
    others = {one.name.removeprefix(QUEUE.name): one.value for one in samples if "le" not in one.labels}
    assert others == {"_count": 5, "_sum": pytest.approx(1080.003)}


def test_what_was_never_seen_is_zero_in_every_bucket() -> None:
    samples = list(samples_of([Reading(QUEUE, AT, Times(QUEUE.bounds_s).counts())]))
    assert len(samples) == len(QUEUE.bounds_s) + 3
    assert {one.value for one in samples} == {0}


def test_counts_are_of_the_moment() -> None:
    times = Times(QUEUE.bounds_s)
    before = times.counts()
    times.add_equal(0.5, 4)
    assert (sum(before.bucket_counts), sum(times.counts().bucket_counts), times.sum_s) == (0, 4, 2.0)
