"""The communicator of a shard among others, over process groups of its own."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import PeerLostError
from serve_app.models.torch_dtypes import DTYPE_NAMES, TORCH_DTYPES
from serve_app.parallel.communicator import StepFailedError
from serve_app.parallel.process_groups import Store, make_group
from serve_app.types.shards import Rendezvous, ShardSpec

logger = logging.getLogger(__name__)


class GroupCommunicator:
    """Process groups of one shard: its stage's ranks, and the same rank of the neighbouring stages.

    gloo on CPU, NCCL on CUDA. The groups are made here and belong to this object: torch's default group is not used.
    What has been loaded refers to this object, so a shard that stays for another epoch joins its groups with it.
    """

    def __init__(
        self, store: Store, shard: ShardSpec, rendezvous: Rendezvous, device: torch.device, own_host: str
    ) -> None:
        self._tensor_group: Any = None
        self._pipeline_group: Any = None
        self._shard = shard
        self._previous, self._next = shard.stage - 1, shard.stage + 1
        self._pending: list[tuple[Any, Tensor]] = []  # sent, and perhaps not arrived yet
        self._device = device
        self.join(store, rendezvous, own_host)

    def join(self, store: Store, rendezvous: Rendezvous, own_host: str) -> None:
        """Meet the others; after `leave`, those of a new epoch."""
        shard, device = self._shard, self._device
        if shard.num_ranks > 1:
            self._tensor_group = make_group(
                store, f"tensor/{shard.stage}", shard.rank, shard.num_ranks, rendezvous, device, own_host
            )
        if shard.num_stages > 1:
            self._pipeline_group = make_group(
                store, f"pipeline/{shard.rank}", shard.stage, shard.num_stages, rendezvous, device, own_host
            )

    def leave(self) -> None:
        """See Communicator. What has been sent and has not arrived is lost."""
        if self._device.type == "cuda":  # NCCL keeps waiting for the others when a group is only dropped
            self.abort()
        self._tensor_group = self._pipeline_group = None
        self._pending.clear()

    def abort(self) -> None:
        """Let what waits on a GPU for another shard end. For any thread; what follows raises PeerLostError."""
        for group in (self._tensor_group, self._pipeline_group):
            if group is not None:
                group.abort()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks of this stage, in place."""
        if self._tensor_group is not None:
            with _losses_told():
                self._tensor_group.allreduce([tensor]).wait()
        return tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The ranks' tensors in order of rank."""
        if self._tensor_group is None:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self._tensor_group.size())]
        with _losses_told():
            self._tensor_group.allgather([gathered], [tensor]).wait()
        return gathered

    def send_next(self, tensor: Tensor) -> None:
        """Start the hop; the one before must have arrived, so at most one tensor is kept alive."""
        self._wait_for_arrival()
        self._send(tensor.contiguous(), self._next)

    def receive_previous(self, tensor: Tensor) -> Tensor:
        """Wait for the previous stage's hidden states."""
        return self._receive(tensor, self._previous)

    def send_named(self, tensors: dict[str, Tensor]) -> None:
        """Start the hop: a header's length, the header, then each tensor's bytes."""
        self._send_named(tensors, self._next)

    def send_failure(self, kind: str) -> None:
        """Start the hop of a failure."""
        self._send_failure(kind, self._next)

    def receive_named(self) -> dict[str, Tensor]:
        """Wait for the previous stage's tensors, or its failure."""
        return self._receive_named(self._previous)

    def send_named_back(self, tensors: dict[str, Tensor]) -> None:
        """Start the hop, as send_named does."""
        self._send_named(tensors, self._previous)

    def send_failure_back(self, kind: str) -> None:
        """Start the hop of a failure."""
        self._send_failure(kind, self._previous)

    def receive_named_back(self) -> dict[str, Tensor]:
        """Wait for the next stage's tensors, or its failure."""
        return self._receive_named(self._next)

    def _send_named(self, tensors: dict[str, Tensor], stage: int) -> None:
        header = [[name, DTYPE_NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in tensors.items()]
        self._wait_for_arrival()
        self._send_header({"tensors": header}, stage)
        for tensor in tensors.values():
            if tensor.numel():
                self._send(_as_bytes(tensor.contiguous()), stage)

    def _send_failure(self, kind: str, stage: int) -> None:
        self._wait_for_arrival()
        self._send_header({"failure": kind}, stage)

    def _receive_named(self, stage: int) -> dict[str, Tensor]:
        length = self._receive(torch.empty(1, dtype=torch.int64, device=self._device), stage)
        header = self._receive(torch.empty(int(length), dtype=torch.uint8, device=self._device), stage)
        told = json.loads(header.cpu().numpy().tobytes())
        if "failure" in told:
            raise StepFailedError(told["failure"])
        tensors: dict[str, Tensor] = {}
        for name, dtype, shape in told["tensors"]:
            tensor = torch.empty(shape, dtype=TORCH_DTYPES[dtype], device=self._device)
            if tensor.numel():
                self._receive(_as_bytes(tensor), stage)
            tensors[name] = tensor
        return tensors

    def _send_header(self, header: dict[str, Any], stage: int) -> None:
        encoded = bytearray(json.dumps(header).encode())
        self._send(torch.tensor([len(encoded)], dtype=torch.int64).to(self._device), stage)
        self._send(torch.frombuffer(encoded, dtype=torch.uint8).to(self._device), stage)

    def _send(self, tensor: Tensor, stage: int) -> None:
        assert self._pipeline_group is not None
        with _losses_told():
            self._pending.append((self._pipeline_group.send([tensor], stage, 0), tensor))

    def _receive(self, tensor: Tensor, stage: int) -> Tensor:
        assert self._pipeline_group is not None
        with _losses_told():
            self._pipeline_group.recv([tensor], stage, 0).wait()
        return tensor

    def _wait_for_arrival(self) -> None:
        with _losses_told():
            for work, _tensor in self._pending:
                work.wait()
        self._pending.clear()


@contextmanager
def _losses_told() -> Iterator[None]:
    """What torch raises when a connection is closed, or nothing comes for too long, is the loss of a peer."""
    try:
        yield
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise  # this shard's own
    except RuntimeError as error:
        logger.warning("peer lost reason=%s", " ".join(str(error).split())[:300])
        raise PeerLostError("another shard of the group is gone") from error


def _as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory as [bytes] uint8: gloo does not know every dtype."""
    return tensor.reshape(-1).view(torch.uint8)
