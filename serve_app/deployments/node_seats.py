"""Which process becomes which shard, now that it is known on which nodes they are.

Ray places the bundles of a group where there is room, in no promised order. The ranks of a tensor group exchange sums
in every layer, so they belong on one node; stages exchange hidden states once a step.
"""

from collections import defaultdict
from collections.abc import Sequence


def seat_shards(nodes: Sequence[str], tensor: int) -> list[int]:
    """The process of each shard, in the order stage by stage and rank by rank.

    nodes: where each process is, `pipeline x tensor` of them. Whole tensor groups come first, those of one node side by
    side, larger nodes before smaller ones; a group straddles nodes only where what is left over leaves no choice.
    """
    by_node: defaultdict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        by_node[node].append(index)
    larger_first = sorted(by_node.values(), key=len, reverse=True)
    seats = [index for own in larger_first for index in own[: len(own) - len(own) % tensor]]
    rests = (own[len(own) - len(own) % tensor :] for own in larger_first)
    return seats + [index for rest in sorted(rests, key=len, reverse=True) for index in rest]


def straddling_stages(nodes: Sequence[str], tensor: int) -> list[int]:
    """The stages whose ranks are on more than one node; nodes: of each shard, stage by stage."""
    return [start // tensor for start in range(0, len(nodes), tensor) if len(set(nodes[start : start + tensor])) > 1]
