"""Why Ray waits: nodes as it reports them, bundles that it wants, and the sentence that comes of them."""

from typing import Any

import pytest

from serve_app.backend.placement import NodeRoom, WaitingPlaces, Want, waiting_reasons, why_not_placed
from serve_app.config.engine import DeviceConfig, ParallelConfig
from serve_app.planning.reservations import copy_bundles

GIB = 2**30
A100, H100 = "accelerator_type:A100", "accelerator_type:H100"


def node(labels: dict[str, str] | None = None) -> NodeRoom:
    """A node with 16 CPUs and 64 GiB."""
    total = {"CPU": 16.0, "memory": 64.0 * GIB}
    return NodeRoom(total, total, labels or {})


def gpu_node(gpus: float, kind: str = A100, **used: float) -> NodeRoom:
    """A node with GPUs."""
    total = {"CPU": 16.0, "memory": 64.0 * GIB, "GPU": gpus, kind: 1.0}
    return NodeRoom(total, {name: amount - used.get(name, 0.0) for name, amount in total.items()})


def copy(parallel: dict[str, Any] | None = None, **device: Any) -> Want:
    """What a copy of a model asks of Ray."""
    bundles = copy_bundles(DeviceConfig(**device), ParallelConfig(**(parallel or {})))
    return Want("chat", "Router", tuple(bundles))


def replica(selector: dict[str, str] | None = None, **bundle: float) -> Want:
    """What a Gateway asks."""
    return Want("gateway", "Gateway", (bundle,), () if selector is None else (selector,))


CUDA: dict[str, Any] = {"type": "cuda"}
TWO: dict[str, Any] = {"pipeline": 2}

CASES = {
    "no GPU anywhere": (
        [node()],
        copy(**CUDA),
        "a stage, whose ranks share a node, needs 1 GPU, and no node has any; set device.type: cpu, or add such a node",
    ),
    "more GPUs than there are": (
        [gpu_node(2)],
        copy({"pipeline": 3}, **CUDA),
        "a copy needs 3 GPUs, and all nodes together have 2; lower parallel, or add nodes",
    ),
    "GPUs of a type nobody has": (
        [gpu_node(8), gpu_node(8, "accelerator_type:T4"), node()],
        copy(**CUDA, accelerator_type="H100"),
        "a stage, whose ranks share a node, needs GPUs of type H100, and the cluster's GPUs are A100 and T4; change "
        "accelerator_type, or add a node with H100",
    ),
    "a tensor group wider than any node": (
        [gpu_node(4), gpu_node(4)],
        copy({"tensor": 8}, **CUDA),
        "a stage, whose ranks share a node, needs 8 GPUs on one node, and no node has more than 4; lower "
        "parallel.tensor and raise parallel.pipeline, or add a node with 8",
    ),
    "tensor groups that would straddle nodes": (
        [gpu_node(3), gpu_node(3)],
        copy({"tensor": 2, "pipeline": 3}, **CUDA),
        "a copy has 3 x 2 GPUs and 0.2 CPUs, each on one node, and the nodes have room for 2; lower "
        "parallel.pipeline, or add 1 such",
    ),
    "a pipeline on fewer nodes than it needs": (
        [gpu_node(8), gpu_node(8), gpu_node(4), gpu_node(4)],
        copy({"tensor": 8, "pipeline": 3}, **CUDA),
        "a copy has 3 x 8 GPUs and 0.8 CPUs, each on one node, and the nodes have room for 2; lower "
        "parallel.pipeline, or add 1 such",
    ),
    "more CPUs than any node": (
        [node(), node()],
        copy(cpus_per_shard=32.0),
        "a stage, whose ranks share a node, needs 32 CPUs on one node, and no node has more than 16; lower "
        "device.cpus_per_shard, or parallel.tensor, or add a node with 32",
    ),
    "more CPUs than all nodes": (
        [node(), node()],
        copy({"pipeline": 3}, cpus_per_shard=12.0),
        "a copy needs 36.05 CPUs, and all nodes together have 32; lower parallel, or add nodes",
    ),
    "more memory than any node": (
        [node(), node()],
        replica(CPU=0.05, memory=100.0 * GIB),
        "a Gateway needs 100.0 GiB of memory on one node, and no node has more than 64.0 GiB; lower it in "
        "ray_actor_options, or add a node with 100.0 GiB",
    ),
    "a label that no node has": (
        [node({"zone": "us-1"})],
        replica({"zone": "in(eu-1,eu-2)"}, CPU=0.05),
        "a Gateway needs a node with the label zone=in(eu-1,eu-2), and none has it; change label_selector, or add such "
        "a node",
    ),
    "a custom resource that no node has": (
        [node()],
        replica(CPU=0.05, fast_disk=1.0),
        "a Gateway needs 1 of the resource fast_disk, and no node has any; remove it from ray_actor_options, or start "
        "a node with it",
    ),
    "much of one on one node, of the other on another": (
        [gpu_node(1), NodeRoom({"CPU": 64.0}, {"CPU": 64.0})],
        copy(**CUDA, cpus_per_shard=32.0),
        "a stage, whose ranks share a node, needs 1 GPU and 32 CPUs on one node, and no node has all of it; lower "
        "parallel.tensor and raise parallel.pipeline, or add a node that has",
    ),
    "no node": ([], copy(), "a stage, whose ranks share a node, needs a node, and none lives; start one"),
    "others have the GPUs": (
        [gpu_node(4, GPU=3.0), gpu_node(4, GPU=4.0)],
        copy(TWO, **CUDA),
        "a copy needs 2 GPUs, and of 8 in the cluster 1 are free; serve fewer models or copies, or add a node",
    ),
    "what is free is on two nodes": (
        [gpu_node(2, GPU=1.0), gpu_node(2, GPU=1.0)],
        copy({"tensor": 2}, **CUDA),
        "a copy needs 2 GPUs and 0.2 CPUs on one node, and what is free is spread over several; serve fewer models or "
        "copies, or add a node",
    ),
}


@pytest.mark.parametrize(("nodes", "want", "told"), CASES.values(), ids=CASES)
def test_what_cannot_be_placed_is_told_with_the_way_out(nodes: list[NodeRoom], want: Want, told: str) -> None:
    assert why_not_placed(nodes, want) == f"{told}: it starts by itself then"


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ([node()], copy()),
        ([gpu_node(1), gpu_node(1)], copy(TWO, **CUDA)),
        ([gpu_node(3), gpu_node(3)], copy({"tensor": 2, "pipeline": 2}, **CUDA)),
        (
            [gpu_node(8, H100), gpu_node(2)],
            copy({"layers": [8, 24], "accelerator_types": ["A100", "H100"]}, **CUDA),
        ),
        ([node({"zone": "eu-1"})], replica({"zone": "in(eu-1,eu-2)", "spot": "!yes"}, CPU=16.0)),
        ([node({"zone": "us-1"})], replica({"zone": "!in(eu-1,eu-2)"}, CPU=1.0)),
    ],
)
def test_what_has_room_is_not_told(nodes: list[NodeRoom], want: Want) -> None:
    assert why_not_placed(nodes, want) is None


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("STRICT_PACK", "a Gateway needs 20 CPUs on one node, and no node has more than 16"),
        ("STRICT_SPREAD", None),
        ("SPREAD", None),
    ],
)
def test_bundles_that_must_share_a_node_are_one(strategy: str, told: str | None) -> None:
    want = Want("gateway", "Gateway", ({"CPU": 10.0}, {"CPU": 10.0}), (), strategy)
    reason = why_not_placed([node(), node()], want)
    assert reason is None if told is None else reason is not None and reason.startswith(told)


def test_bundles_that_must_not_share_a_node_need_as_many() -> None:
    want = Want("gateway", "Gateway", ({"CPU": 1.0},) * 3, (), "STRICT_SPREAD")
    reason = why_not_placed([node(), node()], want)
    assert reason is not None
    assert reason.startswith("a copy has 3 x 1 CPU, each on one node, and the nodes have room for 2; ")


def test_a_node_that_would_do_ends_the_waiting() -> None:
    for nodes, want, told in CASES.values():
        large = NodeRoom(
            {"CPU": 256.0, "memory": 512.0 * GIB, "GPU": 64.0, A100: 1.0, H100: 1.0, "fast_disk": 1.0},
            {},
            {"zone": "eu-1"},
        )
        with_it = [*nodes, NodeRoom(large.total, large.total, large.labels)]
        assert why_not_placed(with_it, want) is None, told


def test_reasons_are_told_of_applications_that_waited_at_two_looks() -> None:
    found = waiting_reasons([node()], [copy(**CUDA), copy(), replica(CPU=0.05)])
    assert list(found) == ["chat"]
    assert found["chat"].startswith("waits for room: a stage, whose ranks share a node, needs 1 GPU")
    first, waiting = WaitingPlaces().take(found)
    second, waiting = waiting.take(found)
    third, waiting = waiting.take({})
    assert (first, second, third) == ({}, found, {})
    assert waiting.take(found)[0] == {}
