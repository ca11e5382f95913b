"""Copies of a model beside its load, on a real cluster: up, down, to none, and from none.

    python -m bench.autoscale_live --record

The demo model with `autoscaling: {min_replicas: 0, max_replicas: 3}` under `serve run`. As many clients as the phase
says ask, one request after the other; the copies that can answer are counted twice a second, as the Gateway's metrics
tell them. `--record` adds both curves to bench/results.md. Some six minutes.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.results import describe_machine, record
from bench.serving import ROOT, serving

MAX_REPLICAS = 3
MODEL_ARGS = {
    "name": "bench",
    "source": str(ROOT / "examples" / "demo_model" / "model"),
    "max_model_len": 512,
    "device": {"cpu_threads": 1},
    "engine": {"max_num_seqs": 2, "max_queued": 1000},
    "autoscaling": {
        "min_replicas": 0,
        "max_replicas": MAX_REPLICAS,
        "target_ttft_s": 1.0,
        "downscale_step": 0.5,
        "downscale_delay_s": 10.0,
        "idle_delay_s": 15.0,
    },
}
NUM_OUTPUTS = 60
SAMPLE_S = 0.5
COLUMN_S = 5.0  # of the curves
SLEEP_S = 120.0  # that the last copy may take to go


@dataclass(frozen=True, slots=True)
class Phase:
    """So many clients for so long; none: until no copy is left."""

    name: str
    num_clients: int
    length_s: float


PHASES = (
    Phase("a little", 1, 30.0),
    Phase("much", 5, 100.0),
    Phase("a little again", 1, 60.0),
    Phase("none", 0, SLEEP_S),
    Phase("from none", 2, 50.0),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What there was at a time."""

    at_s: float
    num_clients: int
    num_copies: int


@dataclass(slots=True)
class Outcome:
    """What the requests of a phase have come to."""

    phase: Phase
    length_s: float = 0.0
    first_s: list[float] = field(default_factory=list)  # to the first token, of those that were answered
    failures: list[str] = field(default_factory=list)


class Load:
    """Clients of one server, and the curves of both."""

    def __init__(self, client: httpx.AsyncClient, clock: Callable[[], float] = time.perf_counter) -> None:
        self.samples: list[Sample] = []
        self._client = client
        self._clock = clock
        self._began_s = clock()
        self._phase = PHASES[0]
        self._has_no_copy = asyncio.Event()

    async def run(self, phases: Sequence[Phase] = PHASES) -> list[Outcome]:
        """One phase after the other."""
        sampling = asyncio.create_task(self._sample())
        try:
            return [await self._run(phase) for phase in phases]
        finally:
            sampling.cancel()

    async def _run(self, phase: Phase) -> Outcome:
        outcome, began_s = Outcome(phase), self._clock()
        self._phase = phase
        end_s = began_s + phase.length_s
        if phase.num_clients:
            await asyncio.gather(*(self._ask_until(end_s, outcome, number) for number in range(phase.num_clients)))
        else:
            self._has_no_copy.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_no_copy.wait(), phase.length_s)
        outcome.length_s = self._clock() - began_s
        return outcome

    async def _ask_until(self, end_s: float, outcome: Outcome, client: int) -> None:
        number = 0
        while self._clock() < end_s:
            number += 1
            try:
                outcome.first_s.append(await self._ask(f"{outcome.phase.name} {client} {number} = "))
            except (httpx.HTTPError, RuntimeError) as error:
                outcome.failures.append(f"{type(error).__name__}: {error}"[:200])

    async def _ask(self, prompt: str) -> float:
        """Seconds to the first token of a streamed completion. Raises RuntimeError where it does not end well."""
        body = {"model": "bench", "prompt": prompt, "max_tokens": NUM_OUTPUTS, "ignore_eos": True, "stream": True}
        began_s, first_s, last = self._clock(), -1.0, ""
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code} {(await response.aread()).decode()}")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    if "error" in json.loads(line[6:]):
                        raise RuntimeError(line)
                    first_s = self._clock() - began_s if first_s < 0 else first_s
                last = line or last
        if last != "data: [DONE]" or first_s < 0:
            raise RuntimeError(f"the stream ended with {last!r}")
        return first_s

    async def _sample(self) -> None:
        while True:
            response = await self._client.get("/metrics")
            at_s = self._clock() - self._began_s
            num_copies = num_ready_copies(response.text)
            self.samples.append(Sample(at_s, self._phase.num_clients, num_copies))
            if num_copies == 0:
                self._has_no_copy.set()
            await asyncio.sleep(SAMPLE_S)


def num_ready_copies(metrics: str) -> int:
    """Copies that can answer, as a Gateway's metrics tell them."""
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    found = families.get("rayshard_replicas")
    return sum(one.labels["state"] == "ready" and one.value == 1 for one in (found.samples if found else ()))


def format_curves(samples: Sequence[Sample], column_s: float = COLUMN_S) -> str:
    """Both curves, a digit for each column: what there was in the middle of it, of copies the last known."""
    num_columns = int(samples[-1].at_s // column_s) + 1
    middles = [
        [one for one in samples if one.at_s <= (column + 0.5) * column_s] or samples[:1]
        for column in range(num_columns)
    ]
    marks = "".join(f"{int(column * column_s):<10}" for column in range(0, num_columns, 10))
    rows = [
        ("seconds", marks.rstrip()),
        ("clients", "".join(str(known[-1].num_clients) for known in middles)),
        ("copies", "".join(str(known[-1].num_copies) for known in middles)),
    ]
    return "\n".join(["```", *(f"{name:<9}{row}" for name, row in rows), "```"])


def format_phases(outcomes: Sequence[Outcome], samples: Sequence[Sample]) -> str:
    """A row for each phase."""
    lines = [
        "| load | clients | seconds | requests | failed | first token, s: median | most | copies |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    end_s = samples[0].at_s
    for one in outcomes:
        began_s, end_s = end_s, end_s + one.length_s
        copies = [sample.num_copies for sample in samples if began_s <= sample.at_s <= end_s] or [0]
        firsts = [f"{median(one.first_s):.2f}", f"{max(one.first_s):.2f}"] if one.first_s else ["-", "-"]
        lines.append(
            f"| {one.phase.name} | {one.phase.num_clients} | {one.length_s:.0f} | "
            f"{len(one.first_s) + len(one.failures)} | {len(one.failures)} | {' | '.join(firsts)} | "
            f"{copies[0]} → {copies[-1]}, at most {max(copies)} |"
        )
    return "\n".join(lines)


def is_met(outcomes: Sequence[Outcome], samples: Sequence[Sample]) -> bool:
    """No request failed, and copies came under load, went with it, to none, and came again."""
    curve = [one.num_copies for one in samples]
    most = max(curve)
    if any(one.failures for one in outcomes) or most < 2 or 0 not in curve[curve.index(most) :]:
        return False
    return curve[-1] > 0


async def measure(url: str) -> tuple[str, bool]:
    """Curves and table, and whether the aims are met."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        load = Load(client)
        outcomes = await load.run()
    for failure in [failure for one in outcomes for failure in one.failures][:10]:
        print(failure)
    text = f"{format_curves(load.samples)}\n\n{format_phases(outcomes, load.samples)}"
    return text, is_met(outcomes, load.samples)


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="append the curves to bench/results.md")
    options = parser.parse_args()
    machine = describe_machine()
    with serving("serve_app.app:build_model", MODEL_ARGS, {}) as served:
        text, is_good = asyncio.run(measure(served.url))
    print(text)
    if options.record:
        record("Copies beside the load, on a real cluster", machine, text)
    raise SystemExit(0 if is_good else 1)


if __name__ == "__main__":
    main()
