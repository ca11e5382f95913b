"""Twelve classifiers in one application: how soon they are ready, and what memory they take."""

import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.serve_cluster import GATEWAY, ServeCluster
from tests.integration.test_batch_models import CLASSIFIER, make_small

NUM_MODELS = 12
MAX_READY_S = 180.0
MAX_BYTES = 2_000_000_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twelve_classifiers_are_soon_ready_and_share_their_memory(tmp_path: Path) -> None:
    arguments = {"vocab_size": 30_522, "num_labels": 4, "embedding_dim": 8, "hidden_size": 8}
    models: list[dict[str, Any]] = [
        {
            "name": f"small-{seed}",
            "source": str(make_small(tmp_path / f"small-{seed}", seed)),
            "task": "classify",
            "architecture": CLASSIFIER,
            "arguments": arguments,
            "preprocessing": ["normalize_unicode", "lowercase"],
        }
        for seed in range(NUM_MODELS)
    ]
    application = {
        "name": "small",
        "route_prefix": None,
        "import_path": "serve_app.app:build_models",
        "args": {"models": models, "device": {"cpu_threads": 1}},
    }
    started = time.monotonic()
    cluster = ServeCluster([GATEWAY, application])
    ready_s = time.monotonic() - started
    try:
        for model in models:
            body = {"model": model["name"], "text": "Where is my parcel?"}
            assert httpx.post(f"{cluster.url}/predict", json=body, timeout=60).status_code == 200
        scrape = httpx.get(f"{cluster.url}/metrics", timeout=20).text
        assert scrape.count("\nrayshard_replicas{") == 1, "they share one copy"
        assert scrape.count("\nrayshard_e2e_request_latency_seconds_count{") == NUM_MODELS
        own = cluster.pids("ray::Shard") + cluster.pids("ray::ServeReplica:small")
        num_bytes = sum(psutil.Process(pid).memory_full_info().pss for pid in own)
        print(f"{NUM_MODELS} models: ready after {ready_s:.0f} s, {len(own)} processes, {num_bytes / 1e6:.0f} MB")
        assert len(own) == 3  # Router, Preprocessor and one shard
        assert ready_s < MAX_READY_S
        assert num_bytes < MAX_BYTES
    finally:
        cluster.stop()
