"""Cutting a list of weights into stages."""

import math
from collections.abc import Sequence
from itertools import accumulate


def stage_ends(weights: Sequence[int], num_stages: int) -> list[int]:
    """End layer of each stage: the lightest heaviest stage first, then the most even stages, then the earliest cuts."""
    sums = [0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    limit = _least_limit(weights, num_stages)
    # best[s][i]: least sum of squares of s stages over layers [0, i); cut[s][i]: where the last of them begins.
    unreachable = (math.inf, -1)
    best = [(0.0, 0) if layer == 0 else unreachable for layer in range(len(weights) + 1)]
    cuts: list[list[int]] = []
    for _ in range(num_stages):
        row = [unreachable] * len(best)
        for end in range(1, len(best)):
            begin = end - 1
            while begin >= 0 and sums[end] - sums[begin] <= limit:
                cost = best[begin][0] + float(sums[end] - sums[begin]) ** 2
                if cost <= row[end][0] and cost < math.inf:
                    row[end] = (cost, begin)
                begin -= 1
        best = row
        cuts.append([begin for _, begin in row])
    ends = [len(weights)]
    for stage in range(num_stages - 1, 0, -1):
        ends.append(cuts[stage][ends[-1]])
    return ends[::-1]


def uneven_stage_ends(weights: Sequence[int], shares: Sequence[float]) -> list[int]:
    """End layer of each stage that can take so much of the weights: what takes longest by its share is least.

    Each stage has a layer at least. Of equal cuts the one with the most even stages, then the earliest.
    """
    sums = [0, *accumulate(weights)]
    num_layers, num_stages = len(weights), len(shares)
    # best[s][i]: of s stages over layers [0, i): the longest stage, the sum of squares, the cuts.
    best: list[dict[int, tuple[float, float, tuple[int, ...]]]] = [{0: (0.0, 0.0, ())}]
    for stage, share in enumerate(shares, 1):
        row: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for end in range(stage, num_layers - (num_stages - stage) + 1):
            found = []
            for begin, (longest, squares, cuts) in best[-1].items():
                if begin < end:
                    time = (sums[end] - sums[begin]) / share
                    found.append((max(longest, time), squares + time**2, (*cuts, end)))
            row[end] = min(found)
        best.append(row)
    return list(best[-1][num_layers][2])


def _least_limit(weights: Sequence[int], num_stages: int) -> int:
    """Least bytes of the heaviest stage, by bisection; more stages than a limit needs never make one heavier."""
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        if _num_stages_within(weights, middle) <= num_stages:
            high = middle
        else:
            low = middle + 1
    return low


def _num_stages_within(weights: Sequence[int], limit: int) -> int:
    num_stages, stage_bytes = 1, 0
    for weight in weights:
        if stage_bytes + weight > limit:
            num_stages, stage_bytes = num_stages + 1, 0
        stage_bytes += weight
    return num_stages
