"""A process group of one rank, as shards make theirs: whether it sums, and whether its sum can be captured."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu_device import Bench, measure_us
from bench.gpu_part import Rows, told
from serve_app.engine.decode_graphs import capture_on
from serve_app.parallel.process_groups import make_group, open_store
from serve_app.types.shards import Rendezvous

_HOST = "127.0.0.1"
_WAIT_S = 30.0
_NUM_ELEMENTS = 4096 * 64  # a step of 64 sequences of an 8B llama


@dataclass(frozen=True, slots=True)
class GroupRow:
    """The group; None: nothing is captured on CPU."""

    backend: str
    is_right: bool
    call_us: float
    capture: str  # what came of it
    is_captured_right: bool | None

    @property
    def problem(self) -> str | None:
        """Sums that are none. Not being captured is told, not a failure: engines of several ranks then run eagerly."""
        if not self.is_right:
            return f"all_reduce over {self.backend} of one rank changes its tensor"
        return "a captured all_reduce changes its tensor" if self.is_captured_right is False else None

    def __str__(self) -> str:
        verdict = "right" if self.is_right else "wrong"
        return f"{self.backend} all_reduce of one rank: {verdict}, {self.call_us:.1f} us; {self.capture}"


def check_group(bench: Bench) -> Rows:
    """One row."""
    store = open_store(_HOST, _WAIT_S)
    rendezvous = Rendezvous(_HOST, store.port, _WAIT_S, _WAIT_S)
    # GroupCommunicator makes no group for one rank, and a second rank would need a second GPU.
    group = make_group(store, "bench", 0, 1, rendezvous, bench.device, _HOST)
    expected = torch.arange(_NUM_ELEMENTS, device=bench.device, dtype=torch.float32)
    tensor = expected.clone()
    _sum(group, tensor)
    is_right = torch.equal(tensor, expected)
    call_us = measure_us(lambda: _sum(group, tensor), bench.device)
    capture, is_captured_right = _capture(group, expected, bench)
    yield GroupRow("NCCL" if bench.is_cuda else "gloo", is_right, call_us, capture, is_captured_right)


def _capture(group: Any, expected: Tensor, bench: Bench) -> tuple[str, bool | None]:
    """What to say of it, and whether its sums are right."""
    capture = capture_on(bench.device)
    if capture is None:
        return "nothing is captured on cpu", None
    tensor = torch.zeros_like(expected)
    try:
        replay = capture(lambda: _sum(group, tensor))
    except RuntimeError as error:
        return f"not captured: {told(error)}", None
    tensor.copy_(expected)
    is_right = torch.equal(replay(), expected)
    return f"captured, {measure_us(replay, bench.device):.1f} us a replay", is_right


def _sum(group: Any, tensor: Tensor) -> Tensor:
    group.allreduce([tensor]).wait()
    return tensor
