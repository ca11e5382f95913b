"""What a shard asks of the others: collectives among the ranks of a stage, and hops between stages."""

from typing import Protocol

from torch import Tensor


class StepFailedError(Exception):
    """A neighbouring stage has failed; `kind` says how."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Communicator(Protocol):
    """What a shard asks of the others. Every call must be made by all that take part, in the same order.

    All but `leave` raise PeerLostError when another shard is gone, or silent for as long as the group waits.
    """

    def leave(self) -> None:
        """Let go of the others: what they wait for here fails at once."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks of this stage, in place."""

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The ranks' tensors, all of one shape, in order of rank."""

    def send_next(self, tensor: Tensor) -> None:
        """Hand hidden states to the same rank of the next stage; returns before they have arrived."""

    def receive_previous(self, tensor: Tensor) -> Tensor:
        """Fill a tensor with the hidden states of the same rank of the previous stage."""

    def send_named(self, tensors: dict[str, Tensor]) -> None:
        """Hand named tensors of any dtype and shape to the same rank of the next stage, as send_next does."""

    def send_failure(self, kind: str) -> None:
        """Hand over the reason why there are no tensors this time."""

    def receive_named(self) -> dict[str, Tensor]:
        """What the previous stage has handed over; raises StepFailedError for a failure."""

    def send_named_back(self, tensors: dict[str, Tensor]) -> None:
        """Hand named tensors to the same rank of the previous stage, as send_next does."""

    def send_failure_back(self, kind: str) -> None:
        """Hand the reason why there are none to the previous stage."""

    def receive_named_back(self) -> dict[str, Tensor]:
        """What the next stage has handed back; raises StepFailedError for a failure."""


class LoneCommunicator:
    """The communicator of a model on one shard."""

    def leave(self) -> None:
        """There are no others."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """One rank: its own sum."""
        return tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """One rank: its own tensor."""
        return [tensor]

    def send_next(self, _tensor: Tensor) -> None:
        """There is no next stage."""
        raise AssertionError("one stage has no next")

    def receive_previous(self, _tensor: Tensor) -> Tensor:
        """There is no previous stage."""
        raise AssertionError("one stage has no previous")

    def send_named(self, _tensors: dict[str, Tensor]) -> None:
        """There is no next stage."""
        raise AssertionError("one stage has no next")

    def send_failure(self, _kind: str) -> None:
        """There is no next stage."""
        raise AssertionError("one stage has no next")

    def receive_named(self) -> dict[str, Tensor]:
        """There is no previous stage."""
        raise AssertionError("one stage has no previous")

    def send_named_back(self, _tensors: dict[str, Tensor]) -> None:
        """There is no previous stage."""
        raise AssertionError("one stage has no previous")

    def send_failure_back(self, _kind: str) -> None:
        """There is no previous stage."""
        raise AssertionError("one stage has no previous")

    def receive_named_back(self) -> dict[str, Tensor]:
        """There is no next stage."""
        raise AssertionError("one stage has no next")
