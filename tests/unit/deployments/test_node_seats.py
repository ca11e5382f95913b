"""Shards and the nodes that their processes happen to be on."""

import random

import pytest

from serve_app.deployments.node_seats import seat_shards, straddling_stages


@pytest.mark.parametrize(
    ("nodes", "tensor", "seated", "straddling"),
    [
        ("aaaa", 2, "aaaa", []),
        ("abab", 2, "aabb", []),  # as given, both groups would straddle
        ("abab", 1, "aabb", []),  # one link between nodes, not three
        ("abbbcbccaac", 1, "bbbbccccaaa", []),
        ("abbbcbcc", 4, "bbbbccca", [1]),
        ("aaabbbbb", 4, "bbbbaaab", [1]),
        ("aaabbb", 2, "aabbab", [2]),  # three each: one group has no choice
    ],
)
def test_ranks_of_a_group_are_on_one_node_where_there_is_room(
    nodes: str, tensor: int, seated: str, straddling: list[int]
) -> None:
    found = [nodes[index] for index in seat_shards(nodes, tensor)]
    assert "".join(found) == seated
    assert straddling_stages(found, tensor) == straddling


def test_every_process_gets_one_seat_and_those_of_a_node_keep_their_order() -> None:
    chance = random.Random(1)
    for _ in range(200):
        tensor = chance.choice([1, 2, 4])
        nodes = chance.choices("abc", k=tensor * chance.randint(1, 4))
        seats = seat_shards(nodes, tensor)
        assert sorted(seats) == list(range(len(nodes)))
        num_whole = sum(nodes.count(node) // tensor for node in set(nodes))
        assert len(straddling_stages([nodes[index] for index in seats], tensor)) == len(nodes) // tensor - num_whole
