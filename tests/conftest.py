"""Settings of every test process, and which tests stay together when several processes share them."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two threads on a busy machine wait for each other far longer than they compute

TESTS = Path(__file__).parent
OWN_CLUSTERS = {"test_batch_models", "test_many_small_models", "test_ray_training", "test_throughput_profile"}


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all tests of a cluster, so that it starts once; clusters come first: they take longest."""
    for item in items:
        group = group_of(item.path.relative_to(TESTS))
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _TURN.get(item.path.relative_to(TESTS).parts[0], len(_TURN)))


def group_of(path: Path) -> str | None:
    """The tests that share something dear with those of this file; None: none do."""
    room, name = path.parts[0], path.stem
    if room == "integration":
        if path.parts[1] == "everything":
            return "everything"
        return name if name in OWN_CLUSTERS else "demo cluster"
    if room in ("parity", "chaos"):
        return f"{room} {name}"  # checkpoints and references
    return None


_TURN = {"integration": 0, "chaos": 1, "parity": 2}
