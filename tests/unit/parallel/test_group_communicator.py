"""Process groups of shards that come and go, over real gloo in threads."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch

from serve_app.errors import PeerLostError
from serve_app.parallel.group_communicator import GroupCommunicator
from serve_app.parallel.process_groups import Store, connect_store, open_store
from serve_app.types.shards import Rendezvous, ShardSpec
from serve_app.wire.links import LOOPBACK

Result = TypeVar("Result")
CPU = torch.device("cpu")
SPLITS = [(2, 1), (1, 2)]  # pipeline, tensor


class Stores:
    """Where the shards of one epoch meet."""

    def __init__(self) -> None:
        self._first = open_store(LOOPBACK, 60.0)
        self.rendezvous = Rendezvous(LOOPBACK, self._first.port, 60.0, 60.0)

    def of(self, index: int) -> Store:
        """A shard's end."""
        return self._first if index == 0 else connect_store(self.rendezvous)


def make_pair(split: tuple[int, int]) -> list[GroupCommunicator]:
    pipeline, tensor = split
    stores = Stores()
    specs = [ShardSpec(index // tensor, pipeline, index % tensor, tensor, 0, 1) for index in range(2)]
    return on_both(lambda index: GroupCommunicator(stores.of(index), specs[index], stores.rendezvous, CPU, LOOPBACK))


def on_both(run: Callable[[int], Result]) -> list[Result]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def exchange(pair: list[GroupCommunicator], split: tuple[int, int]) -> list[float]:
    """What each of the two gets from the other, or from both."""

    def run(index: int) -> float:
        tensor = torch.tensor([float(index + 1)])
        if split == (1, 2):
            return float(pair[index].all_reduce(tensor))
        if index == 0:
            pair[0].send_next(tensor)
            pair[0].send_next(tensor)
            return 0.0
        return float(pair[1].receive_previous(tensor) + pair[1].receive_previous(tensor))

    return on_both(run)


@pytest.mark.parametrize("split", SPLITS)
def test_who_waits_for_one_that_leaves_is_told_at_once(split: tuple[int, int]) -> None:
    pair = make_pair(split)
    before = exchange(pair, split)
    began_s = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        wait = pair[1].all_reduce if split == (1, 2) else pair[1].receive_previous
        waiting = pool.submit(wait, torch.ones(1))
        pair[0].leave()
        with pytest.raises(PeerLostError, match="another shard of the group is gone"):
            waiting.result(timeout=30)
    assert time.monotonic() - began_s < 30, "not by the limit of waiting"
    pair[1].leave()
    stores = Stores()
    on_both(lambda index: pair[index].join(stores.of(index), stores.rendezvous, LOOPBACK))
    assert exchange(pair, split) == before


def test_what_a_receiver_did_not_take_does_not_hold_the_sender() -> None:
    pair = make_pair((2, 1))
    pair[0].send_next(torch.ones(1 << 20))
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(pair[0].send_next, torch.ones(1 << 20))  # waits until the first has arrived
        pair[1].leave()
        with pytest.raises(PeerLostError):
            sending.result(timeout=30)
    pair[0].leave()


def test_a_shard_without_memory_is_itself_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        def allreduce(self, _tensors: list[torch.Tensor]) -> None:
            raise torch.OutOfMemoryError("no memory")

    (first, second) = make_pair((1, 2))
    monkeypatch.setattr(first, "_tensor_group", Group())
    with pytest.raises(torch.OutOfMemoryError):
        first.all_reduce(torch.ones(1))
    second.leave()


def test_groups_of_a_gpu_are_aborted_so_that_nothing_waits_there() -> None:
    class Group:
        is_aborted = False

        def abort(self) -> None:
            self.is_aborted = True

    (first, second) = make_pair((1, 2))
    group = Group()
    first._tensor_group, first._device = group, torch.device("cuda")
    first.leave()
    assert group.is_aborted
    second.leave()
