"""Requests/s, latency and CPU of small models, beside uvicorn, LitServe and Serve written the naive way.

`python -m bench.encoders --record` takes some ten minutes on a quiet machine.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp

from bench.cpu_usage import take_snapshot, usage_between
from bench.results import describe_machine, record
from bench.rivals import TICKETS, minilm_directory
from bench.serving import THROUGHPUT_PROFILE, ServedModel, free_port, running, serving
from serve_app.training.csv_rows import read_csv

NUM_CLIENTS = (1, 8, 64)
MODELS = ("tickets", "minilm")
SYSTEMS = ("rayshard", "rayshard, throughput profile", "uvicorn", "LitServe", "naive Serve")
_WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One system under some clients."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of all its processes, per request


def measure(system: str, model: str, texts: list[str], duration_s: float) -> dict[int, Measured]:
    """Figures by number of clients."""
    path, field = "/predict", "text"
    if system.startswith("rayshard") and model == "minilm":
        path, field = "/v1/embeddings", "input"
    bodies = [{field: text} for text in texts]
    measured = {}
    with _system(system, model) as served:
        asyncio.run(_load(served.url + path, bodies, 8, _WARM_UP_S))
        for num_clients in NUM_CLIENTS:
            before = take_snapshot(served.session_id)
            latencies = asyncio.run(_load(served.url + path, bodies, num_clients, duration_s))
            usage = usage_between(before, take_snapshot(served.session_id))
            ordered = sorted(latencies)
            measured[num_clients] = Measured(
                requests_per_s=len(ordered) / usage.elapsed_s,
                p50_ms=1000 * statistics.median(ordered),
                p99_ms=1000 * ordered[int(0.99 * (len(ordered) - 1))],
                cpu_ms=1000 * usage.cpu_s / len(ordered),
            )
            print(f"{model} {system} {num_clients} clients: {measured[num_clients]}", file=sys.stderr)
    return measured


@contextmanager
def _system(system: str, model: str) -> Iterator[ServedModel]:
    if system.startswith("rayshard"):
        profile = THROUGHPUT_PROFILE if "throughput" in system else {}
        args: dict[str, object] = {"name": "bench", "device": {"cpu_threads": 1}}
        if model == "tickets":
            architecture = "serve_app.models.text_classifier:TextClassifier"
            args |= {"source": str(TICKETS / "model"), "task": "classify", "architecture": architecture}
        else:
            args |= {"source": str(minilm_directory()), "task": "embed"}
        with serving("serve_app.app:build_model", args, profile) as served:
            yield served
        return
    port = free_port()
    if system == "naive Serve":
        application = {"name": "naive", "import_path": "bench.rivals:build_naive", "args": {"model": model}}
        file = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
        with running(["serve", "run"], port, {}, file) as served:
            yield served
        return
    kind = system.lower()
    with running(["python", "-m", "bench.rivals", kind, model, str(port)], port, {}) as served:
        yield served


async def _load(url: str, bodies: list[dict[str, str]], num_clients: int, duration_s: float) -> list[float]:
    """Seconds of each request; each client sends the next when it has the answer to the last."""
    latencies: list[float] = []
    end_s = time.perf_counter() + duration_s
    turn = itertools.cycle(bodies)

    async def client(session: aiohttp.ClientSession) -> None:
        while (begin_s := time.perf_counter()) < end_s:
            async with session.post(url, json=next(turn)) as response:
                answer = await response.read()
                if response.status != 200:
                    raise RuntimeError(f"{response.status} {answer[:500]!r}")
            latencies.append(time.perf_counter() - begin_s)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client(session))
    return latencies


def table(figures: dict[tuple[str, str], dict[int, Measured]]) -> str:
    """One row for each model, system and number of clients."""
    lines = [
        "| model | system | clients | requests/s | p50, ms | p99, ms | CPU, ms per request |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (model, system), by_clients in figures.items():
        for num_clients, one in by_clients.items():
            numbers = f"{one.requests_per_s:.0f} | {one.p50_ms:.1f} | {one.p99_ms:.1f} | {one.cpu_ms:.2f}"
            lines.append(f"| {model} | {system} | {num_clients} | {numbers} |")
    lines.append("")
    for model in MODELS:
        ours = {system: figures[model, system] for system in SYSTEMS if (model, system) in figures}
        for system, num_clients in itertools.product(SYSTEMS[:2], NUM_CLIENTS):
            if system not in ours:
                continue
            ratios = [
                f"{ours[system][num_clients].requests_per_s / ours[other][num_clients].requests_per_s:.2f} x {other}"
                for other in SYSTEMS[2:]
                if other in ours
            ]
            lines.append(f"- {model}, {num_clients} clients, {system}: requests/s are {', '.join(ratios)}.")
    return "\n".join(lines)


def main() -> None:
    """Measure all of them, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--record", action="store_true", help="append to bench/results.md")
    arguments = parser.parse_args()
    machine = describe_machine()
    texts = [row.text for row in read_csv(TICKETS / "heldout.csv", "text", "label").rows]
    figures = {
        (model, system): measure(system, model, texts, arguments.seconds) for model in MODELS for system in SYSTEMS
    }
    text = table(figures)
    print(text)
    if arguments.record:
        record("Small models beside uvicorn, LitServe and naive Serve", machine, text)


if __name__ == "__main__":
    main()
