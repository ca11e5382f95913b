"""Arrays that go to the device together, through memory that no copy reads any more."""

import numpy as np
import torch

from serve_app.engine.host_staging import HostStaging


class Mark:
    """An event that says when it was waited for."""

    def __init__(self, waited: list["Mark"]) -> None:
        self._waited = waited
        self.is_recorded = False

    def record(self) -> None:
        self.is_recorded = True

    def synchronize(self) -> None:
        assert self.is_recorded
        self._waited.append(self)


def test_on_cpu_arrays_are_tensors_as_they_are() -> None:
    array = np.arange(3)
    (tensor,) = HostStaging(torch.device("cpu")).upload([array])
    array[0] = 7
    assert tensor.tolist() == [7, 1, 2]


def test_a_buffer_is_written_again_once_its_copy_has_been_made() -> None:
    """On the meta device, which is none that memory is locked for."""
    marks: list[Mark] = []
    waited: list[Mark] = []

    def make_event() -> Mark:
        marks.append(Mark(waited))
        return marks[-1]

    staging = HostStaging(torch.device("meta"), make_event)
    for turn in range(6):
        shapes = [tuple(one.shape) for one in staging.upload([np.arange(2), np.zeros((3, turn), np.int64)])]
        assert shapes == [(2,), (3, turn)]
        assert waited == marks[: max(0, turn - 3)]
