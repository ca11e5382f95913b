"""Real processes of a one-step model that are killed: what they had is run again, by those that stay and a new one."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.batch_work import BatchWork
from serve_app.deployments.copy_work import CopyWork
from serve_app.deployments.model_copy import ModelCopy
from serve_app.engine.plain_processes import ProcessShardGroup
from serve_app.errors import RayshardError
from serve_app.planning.served_model import plan_batch_model
from serve_app.preprocessing.arrays import integer_tensor, to_array
from serve_app.scheduling.jobs import Job, JobResult
from serve_app.types.tensors import InferRequest, InferResult, Item
from tests.encoder_checkpoints import make_encoder
from tests.fakes_serve import until
from tests.plain_driver import Split

NUM_TEXTS = 200


class Embedder:
    """A copy of an encoder on plain processes, and what comes of its requests."""

    def __init__(self, directory: Path, split: Split) -> None:
        config = ModelConfig.model_validate(
            {
                "name": "embedder",
                "source": str(directory),
                "task": "embed",
                "pooling": "mean",
                "parallel": {"pipeline": split.pipeline, "tensor": split.tensor},
                "device": {"cpu_threads": 1},
                "engine": {"max_num_seqs": 2, "max_num_batched_tokens": 64, "linear_kernel": "onednn"},
            }
        )
        plan = plan_batch_model(config, directory, read_environment({}))
        plan.refuse_problems()
        self.work = BatchWork([plan], self._take)
        self.losses: list[RayshardError] = []
        self.groups: list[ProcessShardGroup] = []
        self.copy = ModelCopy(self.work, self._make_group, self.losses.append, retry_s=0.01)
        self._ends: dict[Job, asyncio.Future[JobResult]] = {}

    async def embed(self, on_queued: asyncio.Event | None = None) -> list[np.ndarray]:
        """The embeddings of all texts."""
        job = self.work.submit(InferRequest("r", "embedder", [text(index) for index in range(NUM_TEXTS)]))
        self.copy.wake()
        if on_queued is not None:
            on_queued.set()
        self._ends[job] = asyncio.get_running_loop().create_future()
        ended = await asyncio.wait_for(self._ends[job], 120)
        assert isinstance(ended.result, InferResult), ended.error
        return [to_array(output["embedding"]) for output in ended.result.outputs]

    def _take(self, results: list[JobResult]) -> None:
        for result in results:
            self._ends[result.job].set_result(result)

    def _make_group(self, work: CopyWork) -> ProcessShardGroup:
        self.groups.append(ProcessShardGroup([work.settings(shard, 1) for shard in work.shards]))
        return self.groups[-1]


def text(index: int) -> Item:
    """A text of one to twelve tokens."""
    token_ids = [3 + (index * 7 + place) % 50 for place in range(1 + index % 12)]
    return {
        "input_ids": integer_tensor(token_ids),
        "token_type_ids": integer_tensor([0] * len(token_ids)),
        "lengths": integer_tensor([len(token_ids)]),
    }


@asynccontextmanager
async def embedder(directory: Path, split: Split) -> AsyncIterator[Embedder]:
    """A copy that runs, and is ended after a failed assertion too."""
    one = Embedder(directory, split)
    await one.copy.start()
    supervising = asyncio.create_task(one.copy.supervise())
    try:
        yield one
    finally:
        supervising.cancel()
        one.copy.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(("split", "index"), [(Split(2, 1), 0), (Split(2, 1), 1), (Split(1, 2), 0)], ids=str)
async def test_what_is_lost_with_a_shard_is_run_again_and_gives_the_same(
    tmp_path: Path, split: Split, index: int
) -> None:
    async with embedder(make_encoder("bert", tmp_path), split) as one:
        undisturbed = await one.embed()
        queued = asyncio.Event()
        running = asyncio.create_task(one.embed(queued))
        await queued.wait()
        await until(lambda: 0 < one.work.load().num_waiting < NUM_TEXTS - 10)
        first = one.groups[0].processes
        pid = first[index].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for before, after in zip(undisturbed, await running, strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
        assert one.copy.epoch == 2
        assert [process.is_alive() for process in first] == [place != index for place in range(len(first))]
        assert len(one.groups) == len(one.losses) == 1
