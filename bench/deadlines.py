"""Deadlines under a full queue: what is refused, how fast, and whether anything runs after its time.

The demo model's shard in a plain process, behind the Router's own links and a Gateway's backend, without Ray. Some
thirty requests wait all the time; beside them come requests that have 50 ms, 500 ms and 5 s, of the same owner.
`--record` adds the table to bench/results.md.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Sequenced
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from bench.results import describe_machine, record
from bench.serving import ROOT
from serve_app.backend.control import RunningApplication
from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.copy_work import CopyWork
from serve_app.deployments.generation_work import GenerationWork
from serve_app.deployments.generator_calls import GeneratorCalls
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.replica_links import ReplicaIdentity
from serve_app.deployments.step_loop import StepScheduler
from serve_app.engine.plain_processes import HOST, ProcessShardGroup
from serve_app.errors import QueueFullError, TimeoutExceededError
from serve_app.planning.generator_plan import GeneratorPlan, plan_generator
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from serve_app.types.shards import EngineLimits, ShardReport
from serve_app.types.steps import BatchStep, StepInput, StepOutput
from serve_app.wire.links import Senders

MODEL = {
    "name": "bench",
    "source": str(ROOT / "examples" / "demo_model" / "model"),
    "max_model_len": 256,
    "device": {"cpu_threads": 1},
    "engine": {"max_num_seqs": 8, "max_queued": 1000},
}
LIMITS_S = (0.05, 0.5, 5.0)
NUM_WAITING = 32
NUM_OUTPUTS = 30
PAUSE_S = 0.05  # between two requests with a deadline
MAX_REFUSAL_MS = 10.0


@dataclass(slots=True)
class LateSteps:
    """Watches each step for sequences whose time had passed when it was sent."""

    sequences: dict[int, Sequence] = field(default_factory=dict)  # by seed
    num_steps: int = 0
    num_late: int = 0
    _seeds: dict[int, int] = field(default_factory=dict)  # by slot row

    def see(self, step: StepInput, now_s: float) -> None:
        """A step is sent."""
        self.num_steps += 1
        self._seeds |= {start.slot_row: start.params.seed for start in step.starts}
        for row in step.slot_rows:
            sequence = self.sequences.get(self._seeds[row])
            if sequence is not None and sequence.deadline_s is not None:
                self.num_late += sequence.deadline_s <= now_s


class WatchedScheduler:
    """A StepScheduler whose steps are seen."""

    def __init__(self, scheduler: StepScheduler, late: LateSteps) -> None:
        self._scheduler = scheduler
        self._late = late

    @property
    def num_steps_in_flight(self) -> int:
        """See StepScheduler."""
        return self._scheduler.num_steps_in_flight

    @property
    def has_work(self) -> bool:
        """See StepScheduler."""
        return self._scheduler.has_work

    @property
    def last_step_s(self) -> float:
        """See StepScheduler."""
        return self._scheduler.last_step_s

    def schedule(self, now_s: float) -> StepInput | BatchStep | None:
        """See StepScheduler."""
        step = self._scheduler.schedule(now_s)
        if isinstance(step, StepInput):
            self._late.see(step, now_s)
        return step

    def update(self, output: StepOutput, now_s: float) -> object:
        """See StepScheduler."""
        return self._scheduler.update(output, now_s)

    def check(self) -> None:
        """See StepScheduler."""
        self._scheduler.check()


class WatchedWork(GenerationWork):
    """GenerationWork whose steps are seen."""

    def __init__(self, plan: GeneratorPlan, on_outputs: Callable[[list[SequenceOutput]], None]) -> None:
        super().__init__(plan, on_outputs)
        self.late = LateSteps()
        self.refusals_ms: list[float] = []  # what the decision took

    def scheduler(self, reports: Sequenced[ShardReport], limits: EngineLimits | None) -> StepScheduler:
        """See CopyWork."""
        return WatchedScheduler(super().scheduler(reports, limits), self.late)

    def submit(self, request: GenerateRequest) -> list[Sequence]:
        """See GenerationWork."""
        began_s = time.perf_counter()
        try:
            sequences = super().submit(request)
        except QueueFullError:
            self.refusals_ms.append(1000 * (time.perf_counter() - began_s))
            raise
        self.late.sequences[request.params.seed] = sequences[0]
        return sequences


class Replica:
    """The one copy, and the Control of a cluster that has nothing else."""

    node = HOST

    def __init__(self, plan: GeneratorPlan) -> None:
        senders = Senders(HOST)
        calls = GeneratorCalls(plan, "bench", senders)
        self.work = calls.work = WatchedWork(plan, calls.take_outputs)
        identity = ReplicaIdentity("bench", "bench", "Router", HOST)
        self.replica = ModelReplica(identity, calls.work, calls, make_group, senders)

    async def applications(self, **_: bool) -> dict[str, RunningApplication]:
        """See Control."""
        return {"bench": RunningApplication("RUNNING", "", ("Router",))}

    async def num_nodes(self) -> int:
        """See Control."""
        return 1

    async def register(self, _application: str, _deployment: str, address: LinkAddress) -> list[list[ModelDescription]]:
        """See Control."""
        self.replica.links.register(address)
        return [self.replica.describe()]

    async def hold(self, _application: str, _deployment: str, seconds: float) -> None:
        """See Control."""
        await asyncio.sleep(seconds)


@dataclass(slots=True)
class Ends:
    """What became of the requests of one deadline."""

    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    passed_s: list[float] = field(default_factory=list)


def make_group(work: CopyWork) -> ProcessShardGroup:
    """The shard in a process of its own."""
    return ProcessShardGroup([work.settings(shard, 1) for shard in work.shards])


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Replica, ServeBackend]]:
    """The copy, and a backend that knows it."""
    plan = plan_generator(ModelConfig.model_validate(MODEL), ROOT, read_environment({})).refuse_problems()
    replica = Replica(plan)
    await replica.replica.start()
    backend = ServeBackend(replica)
    await backend.find_running_models()
    try:
        yield replica, backend
    finally:
        backend.close()
        replica.replica.close_now()
        await asyncio.sleep(0)


async def ask(backend: ServeBackend, number: int, limit_s: float | None) -> None:
    """One request, to its end."""
    params = SamplingParams(max_tokens=NUM_OUTPUTS, seed=number, ignore_eos=True)
    request = GenerateRequest(str(number), [3 + number % 200] * 16, params, time_left_s=limit_s)
    await backend.generate("bench", request, lambda _chunk: True)


async def ask_in_time(backend: ServeBackend, number: int, limit_s: float, ends: Ends) -> None:
    """A request with a deadline; what it comes to."""
    began_s = time.perf_counter()
    try:
        await ask(backend, number, limit_s)
        ends.answered_s.append(time.perf_counter() - began_s)
    except QueueFullError:
        ends.refused_s.append(time.perf_counter() - began_s)
    except TimeoutExceededError:
        ends.passed_s.append(time.perf_counter() - began_s - limit_s)


async def measure(seconds: float) -> tuple[str, bool]:
    """The table, and whether the aim is met."""
    ends = {limit_s: Ends() for limit_s in LIMITS_S}
    async with running() as (replica, backend):
        numbers = iter(range(10**9))
        busy: set[asyncio.Task[None]] = set()
        timed: list[asyncio.Task[None]] = []
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            while len(busy) < NUM_WAITING + 8:
                task = asyncio.create_task(ask(backend, next(numbers), None))
                busy.add(task)
                task.add_done_callback(busy.discard)
            await asyncio.sleep(PAUSE_S)
            limit_s = LIMITS_S[len(timed) % len(LIMITS_S)]
            timed.append(asyncio.create_task(ask_in_time(backend, next(numbers), limit_s, ends[limit_s])))
        await asyncio.gather(*timed)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        late, decisions_ms = replica.work.late, replica.work.refusals_ms
    lines = [
        "| deadline, s | sent | answered | refused | passed in the queue or running |",
        "| --- | --- | --- | --- | --- |",
    ]
    for limit_s, one in ends.items():
        num_sent = len(one.answered_s) + len(one.refused_s) + len(one.passed_s)
        lines.append(
            f"| {limit_s:g} | {num_sent} | {len(one.answered_s)} | {len(one.refused_s)} | {len(one.passed_s)} |"
        )
    refusals_ms = [1000 * refusal_s for one in ends.values() for refusal_s in one.refused_s]
    most_ms = _nineteen_of_twenty(refusals_ms)
    is_met = late.num_late == 0 and 0 < most_ms <= MAX_REFUSAL_MS
    lines += [
        "",
        f"{late.num_steps} steps; sequences that a step had after their time: {late.num_late}. A refusal took "
        f"{median(refusals_ms or [0.0]):.1f} ms in the median, nineteen of twenty at most {most_ms:.1f}; of that the "
        f"Router's decision {median(decisions_ms or [0.0]):.2f} and {_nineteen_of_twenty(decisions_ms):.2f} ms. "
        f"Aim: none, and {MAX_REFUSAL_MS:g} ms.",
    ]
    return "\n".join(lines), is_met


def _nineteen_of_twenty(values: Sequenced[float]) -> float:
    return sorted(values)[int(0.95 * len(values))] if values else 0.0


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    machine = describe_machine()
    table, is_met = asyncio.run(measure(options.seconds))
    print(table)
    if options.record:
        record("Deadlines", machine, table)
    raise SystemExit(0 if is_met else 1)


if __name__ == "__main__":
    main()
