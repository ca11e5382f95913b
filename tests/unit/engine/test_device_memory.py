"""What is left of a device for a KV cache."""

import pytest

from serve_app.engine.device_memory import MemoryUse, kv_cache_bytes
from serve_app.types.shards import GPU_RESERVE_BYTES

GIB = 1024**3


@pytest.mark.parametrize(
    ("use", "utilization", "expected"),
    [
        (MemoryUse(80 * GIB, 64 * GIB, 15 * GIB, 2 * GIB), 0.9, int(80 * GIB * 0.9) - 17 * GIB - GPU_RESERVE_BYTES),
        (MemoryUse(80 * GIB, 20 * GIB, 15 * GIB, 2 * GIB), 0.9, 18 * GIB - GPU_RESERVE_BYTES),  # others have the rest
        (MemoryUse(80 * GIB, 64 * GIB, 15 * GIB, 2 * GIB), 0.25, 3 * GIB - GPU_RESERVE_BYTES),  # a share of a GPU
        (MemoryUse(16 * GIB, 1 * GIB, 15 * GIB, 2 * GIB), 1.0, 0),
        (MemoryUse(16 * GIB, 16 * GIB, 15 * GIB, 0), 0.5, 0),
    ],
)
def test_the_cache_gets_what_weights_steps_and_the_reserve_leave(
    use: MemoryUse, utilization: float, expected: int
) -> None:
    assert kv_cache_bytes(use, utilization) == expected
