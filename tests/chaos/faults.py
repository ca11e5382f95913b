"""The faults of the table, and how each is brought in."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.chaos.faulty_cluster import CONTROLLER, GATEWAY, PROXY, ROUTER, SHARD, FaultyCluster, Layout
from tests.integration.serve_cluster import DEMO_MODEL, model_application

Application = dict[str, Any]

_ONE, _TWO = Layout(), Layout(num_copies=2)


@dataclass(frozen=True, slots=True)
class Effect:
    """What bringing a fault in did."""

    victims: tuple[int, ...] = ()  # processes that are to be gone afterwards
    note: str = ""


Inflict = Callable[[FaultyCluster], Effect]  # raises LookupError: there is nothing to break


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table."""

    name: str
    inflict: Inflict
    layout: Layout = _ONE
    added: Mapping[str, int] = field(default_factory=dict)  # processes of a kind that there are more afterwards
    min_load_s: float = 0.0  # chats are sent again until then: an update takes effect late
    changes_weights: bool = False  # each answer is that of the old weights, or that of the new ones

    @property
    def must_not_fail(self) -> bool:
        """Whether a copy lives or can be rebuilt, so that no request may fail."""
        return self.name in MUST_NOT_FAIL


def _signalled(title: str, number: signal.Signals) -> Inflict:
    return lambda cluster: _signal_first(cluster.pids(title), title, number)


def _killed(program: str) -> Inflict:
    return lambda cluster: _signal_first(cluster.named(program), program, signal.SIGKILL)


def _signal_first(pids: Sequence[int], name: str, number: signal.Signals) -> Effect:
    if not pids:
        raise LookupError(f"no process is called {name}")
    os.kill(pids[0], number)
    return Effect((pids[0],))


def _deployed(change: Callable[[list[Application]], list[Application]]) -> Inflict:
    def inflict(cluster: FaultyCluster) -> Effect:
        try:
            cluster.deploy(change(cluster.applications))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return Effect(note=f"serve deploy: {' '.join(str(error).split())[-120:]}")
        return Effect()

    return inflict


def _with_demo_args(**args: Any) -> Inflict:
    def change(applications: list[Application]) -> list[Application]:
        return [{**one, "args": {**one["args"], **args}} if one["name"] == "demo" else one for one in applications]

    return _deployed(change)


def _with_other_weights(cluster: FaultyCluster) -> Effect:
    """The same model a training step later: tensors of the same names and shapes."""
    source = shutil.copytree(DEMO_MODEL, cluster.directory / "trained", dirs_exist_ok=True)
    path = source / "model.safetensors"
    chance = torch.Generator().manual_seed(1)
    tensors = {
        name: (tensor + 0.002 * torch.randn(tensor.shape, generator=chance)).to(tensor.dtype)
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return _with_demo_args(source=str(source))(cluster)


def _nothing(_cluster: FaultyCluster) -> Effect:
    return Effect()


_SECOND_MODEL = {SHARD: 1, "ray::ServeReplica:": 1}
_UPDATE_S = 60.0
_NEW_START_S = 90.0
_KILL, _STOP = signal.SIGKILL, signal.SIGSTOP

FAULTS = (
    Fault("none", _nothing),
    Fault("shard-kill", _signalled(SHARD, _KILL)),
    Fault("shard-stop", _signalled(SHARD, _STOP)),
    Fault("shard-kill-with-standby", _signalled(SHARD, _KILL), Layout(num_standby=1)),
    Fault("router-kill", _signalled(ROUTER, _KILL)),
    Fault("router-stop", _signalled(ROUTER, _STOP)),
    Fault("controller-kill", _signalled(CONTROLLER, _KILL)),
    Fault("gateway-kill", _signalled(GATEWAY, _KILL)),
    Fault("gateway-stop", _signalled(GATEWAY, _STOP)),
    Fault("proxy-kill", _signalled(PROXY, _KILL)),
    Fault("raylet-kill", _killed("raylet"), min_load_s=_NEW_START_S),
    Fault("gcs-kill", _killed("gcs_server"), min_load_s=_NEW_START_S),
    Fault("shard-kill-of-two", _signalled(SHARD, _KILL), _TWO),
    Fault("shard-stop-of-two", _signalled(SHARD, _STOP), _TWO),
    Fault("router-kill-of-two", _signalled(ROUTER, _KILL), _TWO),
    Fault("router-stop-of-two", _signalled(ROUTER, _STOP), _TWO),
    Fault("gateway-stop-of-two", _signalled(GATEWAY, _STOP), Layout(num_gateways=2)),
    Fault("update-good", _with_demo_args(max_model_len=512), min_load_s=_UPDATE_S),
    Fault("update-weights", _with_other_weights, min_load_s=_UPDATE_S, changes_weights=True),
    Fault("update-parallel", _with_demo_args(parallel={"pipeline": 1}), added={SHARD: -1}, min_load_s=_UPDATE_S),
    Fault("update-bad-source", _with_demo_args(source="/no/such/model"), min_load_s=_UPDATE_S),
    Fault("update-misspelt-key", _with_demo_args(max_model_length=512), min_load_s=_UPDATE_S),
    Fault(
        "model-added",
        _deployed(lambda all_: [*all_, model_application("second")]),
        added=_SECOND_MODEL,
        min_load_s=_UPDATE_S,
    ),
    Fault(
        "model-removed",
        _deployed(lambda all_: [one for one in all_ if one["name"] != "second"]),
        Layout(has_second_model=True),
        added={kind: -count for kind, count in _SECOND_MODEL.items()},
        min_load_s=_UPDATE_S,
    ),
)

# The proxy's and a Gateway's own death cut the connections that they hold; with Ray's own processes all of a node ends.
_MAY_FAIL = ("gateway-", "proxy-", "raylet-", "gcs-")
MUST_NOT_FAIL = frozenset(fault.name for fault in FAULTS if not fault.name.startswith(_MAY_FAIL))
