"""How many pods hold copies of models."""

import pytest

from serve_app.kuberay.demand import Copies
from serve_app.kuberay.packing import Share, pods_for


@pytest.mark.parametrize(
    ("shares", "room", "pods", "num_answering"),
    [
        ([Share(Copies(1, 1, 1), (4.0, 4.0))], 8, (1, 1, 1), 1),
        ([Share(Copies(1, 1, 1), (4.0, 4.0))], 4, (2, 2, 2), 1),
        ([Share(Copies(0, 1, 3), (4.0, 4.0))], 4, (0, 2, 6), 1),
        ([Share(Copies(2, 3, 8), (1.0,))], 4, (1, 1, 2), 1),
        ([Share(Copies(1, 1, 1), (0.3,)), Share(Copies(1, 1, 1), (0.7,))], 1, (1, 1, 1), 1),
        ([Share(Copies(3, 3, 3), (0.4,))], 1, (2, 2, 2), 2),
        ([Share(Copies(2, 2, 2), (3.0,)), Share(Copies(2, 2, 2), (1.0,))], 4, (2, 2, 2), 2),
        ([Share(Copies(1, 1, 1), (2.0, 2.0)), Share(Copies(1, 1, 1), (3.0,))], 5, (2, 2, 2), 2),
        ([], 8, (0, 0, 0), 0),
    ],
)
def test_copies_find_pods(shares: list[Share], room: float, pods: tuple[int, ...], num_answering: int) -> None:
    found = pods_for(shares, room, least=0)
    assert (found.copies.least, found.copies.first, found.copies.most) == pods
    assert found.num_answering == num_answering


def test_there_are_at_least_so_many() -> None:
    found = pods_for([], 8, least=1)
    assert found.copies == Copies(1, 1, 1)
    assert found.num_answering == 1
