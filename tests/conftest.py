"""Settings of every test process, and which tests stay together when several processes share them."""

import os
from collections import Counter
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which torch does: its kernels run on CPU

TESTS = Path(__file__).parent
_TURN = {"integration": 0, "chaos": 1, "parity": 2}  # the rest comes after them


class RoomScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """One process runs all clusters, one after the other: two at once starve each other on two cores.

    Another process has the rest meanwhile: the tests of a file of parity or chaos together, as they share checkpoints,
    and every other test by itself. (xdist's own groups are marks in a node's id, which pytest 9.2 does not let it set.)
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        room = path.removeprefix("tests/").partition("/")[0]
        if room == "integration":
            return "clusters"
        return path if room in ("parity", "chaos") else nodeid


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where tests run: not in the process that only hands them out."""
    if session.config.pluginmanager.hasplugin("dsession"):
        return
    import torch

    from serve_app.models.light_transformers import leave_out_unused_libraries

    torch.set_num_threads(1)  # two threads on a busy machine wait for each other far longer than they compute
    leave_out_unused_libraries()  # as in a shard


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> RoomScheduling:
    """What hands tests to the processes."""
    return RoomScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Clusters come first, because they take longest. An id that is there twice is an error: xdist would run one."""
    twice = [nodeid for nodeid, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"several tests have the id {twice[0]}; give each its own")
    items.sort(key=lambda item: _TURN.get(item.path.relative_to(TESTS).parts[0], len(_TURN)))
