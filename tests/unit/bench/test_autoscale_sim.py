"""A small run of the autoscaling simulation: what the policies cost and miss, and how copies fill."""

from functools import cache

import numpy as np
import pytest

from bench.autoscale_cluster import Cluster, CopySpec, Outcome
from bench.autoscale_sim import TRAFFICS, scalers, simulate

SPEC = CopySpec(startup_s=30.0)
TARGETS = (2, 32)  # ongoing requests for each copy; with 24 to 40 Serve does best


@cache
def outcomes(traffic: int) -> dict[str, Outcome]:
    """Two hours on 100 GPUs under each policy."""
    return {
        name: simulate(make(), TRAFFICS[traffic], SPEC, num_gpus=100, length_s=7200)
        for name, make in scalers(25, TARGETS)
    }


def test_a_full_copy_does_what_its_spec_says_and_what_is_above_that_waits() -> None:
    cluster = Cluster(SPEC, 2, target_ttft_s=2.0)
    for second in range(120):
        cluster.run_second(30.0, float(second))
    assert cluster.capacity_usages() == pytest.approx([1.0, 1.0], abs=0.1)
    growth_s = cluster.queue_delays_s().mean()
    for second in range(120, 180):
        cluster.run_second(30.0, float(second))
    grown_s = cluster.queue_delays_s().mean() - growth_s
    assert grown_s == pytest.approx(60 * (15.0 / SPEC.requests_per_s - 1), rel=0.1)


def test_a_queue_stays_where_it_is_and_new_requests_go_to_the_new_copy() -> None:
    cluster = Cluster(SPEC, 1, target_ttft_s=2.0)
    cluster.run_second(500.0, 0.0)
    cluster.scale(2, 0.0)
    cluster.run_second(0.0, 29.0)
    assert cluster.num_running == 1
    cluster.run_second(8.0, 30.0)
    assert cluster.num_running == 2
    old_s, new_s = cluster.queue_delays_s()
    assert old_s > 60
    assert new_s == 0.0


def test_copies_that_leave_end_their_requests_and_cost_until_then() -> None:
    cluster = Cluster(SPEC, 2, target_ttft_s=2.0)
    cluster.run_second(80.0, 0.0)
    cluster.scale(1, 0.0)
    before_s = cluster.outcome.gpu_s
    cluster.run_second(0.0, 1.0)
    assert cluster.outcome.gpu_s - before_s == 2 * SPEC.num_gpus
    for second in range(2, 200):
        cluster.run_second(0.0, float(second))
    before_s = cluster.outcome.gpu_s
    cluster.run_second(0.0, 200.0)
    assert cluster.outcome.gpu_s - before_s == SPEC.num_gpus


def test_all_arrivals_are_counted_and_a_model_without_copies_holds_them() -> None:
    cluster = Cluster(SPEC, 0, target_ttft_s=2.0)
    cluster.run_second(10.0, 0.0)
    cluster.scale(1, 0.0)
    for second in range(1, 40):
        cluster.run_second(1.0, float(second))
    assert cluster.outcome.num_requests == 49
    assert cluster.outcome.num_misses == pytest.approx(10 + 28, abs=3), "those that came before the start had ended"
    assert np.all(cluster.queue_delays_s() == 0.0)


@pytest.mark.parametrize(("traffic", "cost", "misses"), [(0, 1.03, 1.0), (1, 1.0, 1.0), (2, 0.95, 0.75)])
def test_ours_costs_and_misses_no_more_than_serves_own_policy_well_set(
    traffic: int, cost: float, misses: float
) -> None:
    """cost, misses: shares of what Serve's comes to with 32 requests a copy, about its best; measured 1.01, 0.98, 0.92
    and 0.66 of the misses of the steps; there are none otherwise.
    """
    found = outcomes(traffic)
    ours, default = found["rayshard"], found["Serve, 2 requests a copy (its default)"]
    well_set = found["Serve, 32 requests a copy"]
    assert ours.gpu_s < 0.75 * default.gpu_s
    assert ours.gpu_s <= cost * well_set.gpu_s
    assert ours.miss_share <= misses * well_set.miss_share
