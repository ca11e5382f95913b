"""One cluster for all tests of this folder: the shipped demo model over two shards."""

from collections.abc import Iterator

import pytest

from tests.integration.serve_cluster import GATEWAY, ServeCluster, model_application


@pytest.fixture(scope="package")
def cluster() -> Iterator[ServeCluster]:
    running = ServeCluster([GATEWAY, model_application("demo", parallel={"pipeline": 2, "tensor": 1})])
    try:
        yield running
    finally:
        running.stop()
