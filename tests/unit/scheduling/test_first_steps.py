"""Who counts times in the queue is told of what starts: once each, whatever comes after."""

from serve_app.scheduling.batch_scheduler import BatchModel, BatchScheduler
from serve_app.scheduling.jobs import Job
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.tensors import InferRequest, TensorData, TensorSpec
from tests.scheduler_driver import answered, request_of, scheduled


def test_a_sequence_starts_once_however_often_it_is_pre_empted() -> None:
    started: list[Sequence] = []
    limits = EngineLimits(8, 64, 24, block_size=4, num_blocks=6)
    scheduler = Scheduler(limits, num_stages=1, max_queued=16, on_start=started.append)
    sequences = [scheduler.add(request_of(2, params=SamplingParams(max_tokens=22, seed=seed)))[0] for seed in (1, 2, 3)]
    assert not started
    while scheduler.has_work:
        answered(scheduler, scheduled(scheduler))
    assert scheduler.num_preemptions > 0
    assert started == sequences


def test_a_batch_request_starts_with_the_first_of_its_entries() -> None:
    started: list[Job] = []
    model = BatchModel("lone", {"x": TensorSpec("int64", (1,))}, {"y": TensorSpec("int64", (1,))}, None)
    scheduler = BatchScheduler([model], num_stages=2, max_rows=4, max_tokens=4, max_queued=8, on_start=started.append)
    item = {"x": TensorData("int64", (1,), bytes(8))}
    job = scheduler.add(InferRequest("r", "lone", [item, item]))
    assert not started
    assert scheduler.schedule() is not None
    assert scheduler.schedule() is not None
    assert started == [job]
