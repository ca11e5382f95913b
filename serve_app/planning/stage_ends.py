"""Cutting a list of weights into stages."""

import math
from collections.abc import Sequence


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
