"""Ray nodes on addresses of loopback, in a process that a test tells which to add: `python -m ...ray_nodes DIRECTORY`.

A line of standard input is the arguments of a node as JSON; the line it prints is what the test needs to know of it.
"""

import json
import sys
import threading
import time
from typing import Any

from ray.cluster_utils import Cluster

_HEALTH = {  # no connection to a raylet that was killed; one that a busy machine holds up answers late
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}


def main(directory: str) -> None:
    """The first node is the head, with a dashboard; all end with standard input."""
    cluster = Cluster()
    threading.Thread(target=_reap, args=(cluster,), daemon=True).start()
    for line in sys.stdin:
        arguments: dict[str, Any] = json.loads(line)
        if cluster.head_node is None:
            arguments |= {"temp_dir": directory, "include_dashboard": True, "_system_config": _HEALTH}
        node = cluster.add_node(**arguments)
        raylet = next(iter(node.all_processes["raylet"])).process.pid
        print(json.dumps({"raylet": raylet, "dashboard": node.webui_url}), flush=True)
    for node in [*cluster.worker_nodes, cluster.head_node]:
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _reap(cluster: Cluster) -> None:
    """A raylet that was killed is gone for its workers, which then end, when its parent has taken note."""
    while True:
        for node in list(cluster.worker_nodes):
            for started in node.all_processes.get("raylet", []):
                started.process.poll()
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1])
