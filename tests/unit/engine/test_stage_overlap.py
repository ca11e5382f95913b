"""Batches in flight over stages: what two real processes do, driven by the real scheduler and step loop."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from serve_app.deployments.bubble import BubbleMeter
from serve_app.deployments.stage_times import StageTimes
from serve_app.deployments.step_loop import StepLoop
from serve_app.engine.plain_processes import HOST, PlainProcesses
from serve_app.metrics.families import STEPS
from serve_app.metrics.times import Times
from serve_app.preprocessing.arrays import to_tensor_data
from serve_app.scheduling.batch_scheduler import BatchModel, BatchScheduler
from serve_app.scheduling.jobs import JobResult
from serve_app.types.shards import BatchModelSettings, BatchShardSettings
from serve_app.types.tensors import InferRequest, TensorSpec
from serve_app.wire.control_link import ControlServer
from tests.stage_group import settings_of, stages
from tests.unit.models.test_torch_model import save
from tests.user_modules import Traced

NUM_REQUESTS = 6
PART_S = 0.15
ROW = {"x": TensorSpec("float32", ("batch", 6))}
OUT = {"y": TensorSpec("float32", ("batch", 6))}


def traced_model(directory: Path, trace: Path) -> BatchModelSettings:
    arguments = {"path": str(trace), "seconds": PART_S}
    save(Traced(str(trace), PART_S), directory)
    return settings_of(
        str(directory),
        architecture="tests.user_modules:Traced",
        arguments=arguments,
        inputs=ROW,
        outputs=OUT,
        batch_dim=None,  # never joined: each request is a step
    )


async def run_all(pool: PlainProcesses, settings: BatchModelSettings, num_in_flight: int) -> list[JobResult]:
    """All requests at once, with so many steps in flight."""
    shards = stages(2)
    pool.load(BatchShardSettings(shards[0], [settings], "cpu", 1), shards)
    control = ControlServer(HOST, 1, 2)
    pool.run(2, control.address)
    model = BatchModel(settings.name, ROW, OUT, None)
    scheduler = BatchScheduler([model], num_stages=num_in_flight, max_rows=8, max_tokens=64, max_queued=64)
    results: list[JobResult] = []
    all_done = asyncio.Event()

    def take(ended: list[JobResult]) -> None:
        results.extend(ended)
        if len(results) == NUM_REQUESTS:
            all_done.set()

    times, bubble = Times(STEPS.bounds_s), BubbleMeter([0, 1], time.monotonic())
    loop = StepLoop(scheduler, control, 2, take, times, bubble, StageTimes(), heartbeat_s=10, step_s=30)
    running = asyncio.create_task(loop.run())
    async with asyncio.timeout(60):
        await loop.wait_for_shards()
        for index in range(NUM_REQUESTS):
            row = to_tensor_data(np.full((1, 6), index, np.float32))
            scheduler.add(InferRequest(str(index), settings.name, [{"x": row}]))
        loop.wake()
        await all_done.wait()
    running.cancel()
    control.send_stop()
    await asyncio.to_thread(pool.wait, 2)
    control.close()
    return results


def num_overlaps(trace: Path) -> int:
    """How often the first stage began a step before the second had ended the one before."""
    spans: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for line in trace.read_text().splitlines():
        index, begin_s, end_s = line.split()
        spans[int(index)].append((float(begin_s), float(end_s)))
    assert [len(one) for one in spans.values()] == [NUM_REQUESTS, NUM_REQUESTS]
    return sum(later[0] < earlier[1] for later, earlier in zip(spans[0][1:], spans[1][:-1], strict=True))


@pytest.mark.process
@pytest.mark.parametrize(("num_in_flight", "least", "most"), [(2, 3, NUM_REQUESTS - 1), (1, 0, 0)])
def test_as_many_batches_are_in_flight_as_there_are_stages(
    tmp_path: Path, num_in_flight: int, least: int, most: int
) -> None:
    trace = tmp_path / "trace"
    pool = PlainProcesses(2)
    try:
        results = asyncio.run(run_all(pool, traced_model(tmp_path / "model", trace), num_in_flight))
    finally:
        pool.kill()
    assert all(result.error is None for result in results)
    assert least <= num_overlaps(trace) <= most  # a busy machine may lose some of five, none may come from nowhere
