"""Settings of every test process, and which tests stay together when several processes share them."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two threads on a busy machine wait for each other far longer than they compute

TESTS = Path(__file__).parent
_TURN = {"integration": 0, "chaos": 1, "parity": 2}  # the rest comes after them


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all clusters, one after the other: two at once starve each other on two cores.

    They come first, because they take longest; another process has the rest meanwhile.
    """
    for item in items:
        room = item.path.relative_to(TESTS).parts[0]
        if room == "integration":
            item.add_marker(pytest.mark.xdist_group("clusters"))
        elif room in ("parity", "chaos"):
            item.add_marker(
                pytest.mark.xdist_group(f"{room} {item.path.stem}")
            )  # they share checkpoints and references
    items.sort(key=lambda item: _TURN.get(item.path.relative_to(TESTS).parts[0], len(_TURN)))
