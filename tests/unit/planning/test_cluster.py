"""Nodes of a cluster, and what has no room there."""

from pathlib import Path

import pytest

from serve_app.cli.main import main
from serve_app.errors import ConfigError
from serve_app.planning.cluster import read_cluster
from serve_app.planning.device_profiles import load_profiles
from tests.published_models import write_published

GATEWAY = "{name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}"
NODES = "nodes:\n  - {count: 2, device: H100, devices: 4, cpus: 64, memory: 1TB}\n"


def write(directory: Path, nodes: str, args: str, num_replicas: int = 1) -> list[str]:
    """Arguments of a command that plans llama 70B on these nodes."""
    write_published("llama-3.1-70B", directory / "llama")
    model = "name: chat, route_prefix: null, import_path: 'serve_app.app:build_model'"
    router = f"deployments: [{{name: Router, num_replicas: {num_replicas}}}]"
    args = f"args: {{name: chat, source: llama, max_model_len: 8192, {args}}}"
    (directory / "serve.yaml").write_text(f"applications: [{GATEWAY}, {{{model}, {router}, {args}}}]")
    (directory / "nodes.yaml").write_text(nodes)
    return ["plan", str(directory / "serve.yaml"), "--cluster", str(directory / "nodes.yaml")]


def test_copies_find_room_on_as_many_devices_as_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = "device: {type: cuda}, parallel: {tensor: 2}"
    assert main(write(tmp_path, NODES, args, num_replicas=4)) == 0
    assert "on h100 with 79.2 GiB each" in capsys.readouterr().out
    assert main(write(tmp_path, NODES, args, num_replicas=5)) == 1
    assert capsys.readouterr().err.endswith(
        "nodes.yaml: chat: 5 x 2 shards need 10 devices of h100 (the 2 of a stage on one node), and the cluster has "
        "room for 8; lower num_replicas or parallel, or add nodes\n"
    )


def test_a_stage_does_not_straddle_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "nodes:\n  - {count: 2, device: h100, devices: 3, cpus: 64, memory: 1TB}\n"
    args = "device: {type: cuda}, parallel: {tensor: 2}"
    assert main(write(tmp_path, nodes, args, num_replicas=3)) == 1  # six devices, of which two pairs are on one node
    assert "need 6 devices of h100 (the 2 of a stage on one node), and the cluster has room for 4" in (
        capsys.readouterr().err
    )


def test_ranks_stay_within_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "nodes:\n  - {count: 8, device: a100-40g, devices: 2, cpus: 64, memory: 1TB}\n"
    assert main(write(tmp_path, nodes, "device: {type: cuda}, parallel: auto")) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[:4] == [["0", "0"], ["0", "1"], ["1", "0"], ["1", "1"]]  # four in one node would be 1 x 4


def test_of_uneven_devices_the_smallest_counts_unless_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = NODES + "  - {device: l4, devices: 8, cpus: 64, memory: 256GB}\n"
    assert main(write(tmp_path, nodes, "device: {type: cuda}, parallel: {tensor: 2}")) == 1
    printed = capsys.readouterr()
    assert "GPUs differ (l4, h100): Ray chooses" in printed.out
    assert "of l4; the cheapest change" in printed.err
    args = "device: {type: cuda, accelerator_type: H100}, parallel: {tensor: 2}"
    assert main(write(tmp_path, nodes, args, num_replicas=4)) == 0
    assert main(write(tmp_path, nodes, args, num_replicas=5)) == 1  # L4s are not for them
    capsys.readouterr()
    assert main(write(tmp_path, nodes, "device: {type: cuda, accelerator_type: H200}")) == 1
    assert "accelerator_type=H200, and the cluster's GPUs are l4, h100; write one" in capsys.readouterr().err


def test_reserved_cpus_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = "device: {type: cuda, cpus_per_shard: 40}, parallel: {tensor: 2, pipeline: 2}"
    assert main(write(tmp_path, NODES, device)) == 1
    assert "the models reserve 160.1 CPUs, and the cluster has 128; lower" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodes: []", "nodes: [] has no entry"),
        ("nodes: [{cpus: 4}]", "nodes[0].memory: missing; add it"),
        ("nodes: [{cpus: 4, memory: 1GB, gpu: l4}]", "nodes[0].gpu: unknown setting"),
        ("nodes: [{cpus: 4, memory: 1GB, device: h1000}]", "device 'h1000' is not known; use h200"),
        ("nodes: [{cpus: 4, memory: 1GB, device: cpu}]", "device cpu is a CPU; leave `device` out"),
    ],
)
def test_what_is_wrong_in_such_a_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_cluster(path, load_profiles())
    assert expected in error.value.message
