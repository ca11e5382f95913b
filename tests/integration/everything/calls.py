"""What the tests of this folder share: the example, calls, and the death of a process under a call."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from tests.integration.serve_cluster import ROOT, ServeCluster

EXAMPLE = ROOT / "examples" / "everything.yaml"


def post(cluster: ServeCluster, path: str, **body: Any) -> Any:
    response = httpx.post(f"{cluster.url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def vectors(cluster: ServeCluster, texts: list[str]) -> np.ndarray:
    data = post(cluster, "/v1/embeddings", model="minilm", input=texts)["data"]
    return np.array([entry["embedding"] for entry in data])


def kill_under(cluster: ServeCluster, victim: str, path: str, body: dict[str, Any]) -> int:
    """The status of a request whose process was killed, with SIGKILL, while it was in flight."""
    for _ in range(3):  # a machine that stands still may have the answer before anything dies
        pids = cluster.pids(victim)
        assert pids, victim
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, f"{cluster.url}{path}", json=body, timeout=240)
            time.sleep(0.3)
            if not asked.done():
                cluster.kill(pids)
                return asked.result().status_code
    raise AssertionError("it was done before anything could die")
