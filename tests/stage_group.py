"""One batch model on shards without Ray: in this process when it is whole, in plain processes when it is split."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from serve_app.engine.batch_engine import report_of
from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.plain_processes import HOST, PlainProcesses
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import BatchModelSettings, BatchShardSettings, ShardReport, ShardSpec
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.types.tensors import Item
from serve_app.wire.control_link import ControlServer
from serve_app.wire.messages import BatchOutputMessage
from tests.fakes_links import next_message

CPU = torch.device("cpu")
WHOLE = ShardSpec(0, 1, 0, 1, 0, 4)


class StageGroup:
    """Runs steps one at a time."""

    def __init__(self, settings: BatchModelSettings, shards: list[ShardSpec], pool: PlainProcesses | None) -> None:
        self._num_shards = len(shards)
        self._num_steps = 0
        self._runner: BatchRunner | None = None
        if self._num_shards == 1:
            settings = replace(settings, shard=shards[0])
            lone = LoneCommunicator()
            stage = load_batch_stage(settings, lone, CPU)
            self._runner = BatchRunner([stage], shards[0], lone, CPU)
            self.reports = [ShardReport(0, 0, 0.0, [report_of(settings.name, stage, shards[0])])]
            return
        assert pool is not None
        self.reports = pool.load(BatchShardSettings(shards[0], [settings], "cpu", 1), shards)
        self._pool = pool
        self._events = asyncio.Runner()
        self._control = self._events.run(self._listen())
        pool.run(self._num_shards, self._control.address)

    def run(self, inputs: Item) -> BatchStepOutput:
        """Run one step on all shards."""
        return self.run_step(BatchStep(self._num_steps, 0, inputs))

    def run_step(self, step: BatchStep) -> BatchStepOutput:
        """Run this step on all shards."""
        self._num_steps += 1
        if self._runner is not None:
            output = self._runner.run(step)
            assert output is not None
            return output
        return self._events.run(self._exchange(step))

    def close(self) -> None:
        """End the shards' run; the pool can load the next model."""
        if self._runner is None:
            self._control.send_stop()
            self._pool.wait(self._num_shards)
            self._events.run(self._close())
            self._events.close()

    async def _listen(self) -> ControlServer:
        return ControlServer(HOST, 1, self._num_shards)

    async def _exchange(self, step: BatchStep) -> BatchStepOutput:
        if step.step_id == 0:  # a step that is sent before a shard has connected is dropped
            for _ in range(self._num_shards):
                await next_message(self._control)
        self._control.send_step(step)
        async with asyncio.timeout(60):
            while True:
                message = await next_message(self._control)
                if isinstance(message, BatchOutputMessage):
                    return message.output

    async def _close(self) -> None:
        self._control.close()


@contextmanager
def stage_group(settings: BatchModelSettings, shards: list[ShardSpec], pool: PlainProcesses) -> Iterator[StageGroup]:
    """A group that is ended in good order."""
    group = StageGroup(settings, shards, pool)
    try:
        yield group
    finally:
        group.close()


def lone_group(settings: BatchModelSettings) -> StageGroup:
    """A model on one shard, which needs no end."""
    return StageGroup(settings, stages(1), None)


def settings_of(source_dir: str, **changes: object) -> BatchModelSettings:
    """Settings of a model; `changes` are fields."""
    values: dict[str, object] = {"name": "m", "task": "predict", "dtype": "auto", **changes}
    return BatchModelSettings(source_dir=source_dir, shard=WHOLE, **values)  # type: ignore[arg-type]


def stages(num_stages: int) -> list[ShardSpec]:
    """The shards of a module over so many stages."""
    return [ShardSpec(stage, num_stages, 0, 1, 0, 0) for stage in range(num_stages)]
