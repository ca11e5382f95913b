"""What serving costs beside the engine: CPU of all processes over tokens, and tokens/s of three roads to one model.

`python -m bench.overhead --record` takes some minutes on a quiet machine; `--quick` shows that it runs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from bench.cpu_usage import CpuUsage, measure_idle, take_snapshot, usage_between
from bench.generated import Throughput, WorkItem
from bench.load import LoadReport, run_load
from bench.random_llama import SIZES, write_checkpoint
from bench.results import describe_machine, record
from bench.serving import BUILD_DIR, ROOT, THROUGHPUT_PROFILE, serving
from bench.workload import equal_workload, poisson_workload, write_workload
from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.planning.planner import kv_shape_on, plan_shards

MODEL_NAME = "bench"
PROFILES: Mapping[str, tuple[Mapping[str, str], float]] = {  # environment, and the limit in ms CPU per token
    "plain serve run": ({}, 0.70),
    "throughput": (THROUGHPUT_PROFILE, 0.25),
}
MIN_ROAD_SHARE = 0.85  # of the engine alone

_SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    idle_s: float
    num_streams: int
    num_rounds: int  # requests of each stream
    num_stream_outputs: int
    model: str
    num_requests: int
    requests_per_s: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    num_threads: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int = 1024
    block_size: int = 16
    cache_tokens: int = 32_768


FULL = Scale(10.0, 32, 6, 512, "120M", 64, 8.0, (16, 256), (8, 256), os.cpu_count() or 1)
QUICK = replace(FULL, idle_s=2.0, num_rounds=1, num_stream_outputs=64, model="tiny", num_requests=8)
QUICK = replace(QUICK, output_tokens=(4, 16), num_threads=1)


@dataclass(frozen=True, slots=True)
class ServingCost:
    """CPU of everything but the model, for a number of streams at once."""

    profile: str
    limit_ms: float
    load: LoadReport
    usage: CpuUsage
    idle: CpuUsage

    @property
    def cpu_ms_per_token(self) -> float:
        """What was used beyond idling."""
        idle_cpu_s = self.idle.cpu_s / self.idle.elapsed_s * self.usage.elapsed_s
        return 1000 * (self.usage.cpu_s - idle_cpu_s) / self.load.num_tokens


@dataclass(frozen=True, slots=True)
class Roads:
    """One workload, answered in three ways."""

    engine: Throughput
    whole_road: Throughput
    road_load: LoadReport
    transformers: Throughput


def measure_serving_cost(scale: Scale, profile: str) -> ServingCost:
    """What serving costs with a model that computes nothing, under the number of streams of `scale`."""
    environment, limit_ms = PROFILES[profile]
    size = SIZES["tiny"]
    source_dir = write_checkpoint(size, torch.float32, BUILD_DIR / "tiny")
    args = {"name": MODEL_NAME, "source": str(source_dir), "engine": {"max_num_seqs": scale.num_streams}}
    items = equal_workload(scale.num_streams * scale.num_rounds, 32, scale.num_stream_outputs, size.vocab_size)
    with serving("bench.constant_engine:build_model", args, environment) as served:
        run_load(served.url, MODEL_NAME, items[: scale.num_streams], scale.num_streams)  # so that all is warm
        time.sleep(_SETTLE_S)
        idle = measure_idle(served.session_id, scale.idle_s)
        before = take_snapshot(served.session_id)
        load = run_load(served.url, MODEL_NAME, items, scale.num_streams)
        usage = usage_between(before, take_snapshot(served.session_id))
    return ServingCost(profile, limit_ms, load, usage, idle)


def measure_roads(scale: Scale) -> Roads:
    """The engine in its own process, the whole road, transformers: one workload, threads and sizes the same."""
    size = SIZES[scale.model]
    write_checkpoint(size, torch.float32, BUILD_DIR / scale.model)
    lengths = scale.prompt_tokens, scale.output_tokens
    items = poisson_workload(scale.num_requests, scale.requests_per_s, *lengths, size.vocab_size)
    write_workload(items, BUILD_DIR / "workload.json")
    own = ["--max-model-len", str(scale.max_model_len), "--block-size", str(scale.block_size)]
    engine = _run_alone(scale, "bench.engine_alone", *own)
    whole_road, road_load = _measure_whole_road(scale, items)
    return Roads(engine, whole_road, road_load, _run_alone(scale, "bench.transformers_batching"))


def format_costs(costs: Sequence[ServingCost], num_streams: int) -> str:
    """A table, and below it the processes that used most."""
    lines = [
        f"Serving without a model, {num_streams} streams; CPU of all processes, idling subtracted:",
        "",
        "| profile | ms CPU per token | limit | tokens/s | tokens | idle CPU, s/s | client, ms per token |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cost in costs:
        load = cost.load
        idle, client_ms = cost.idle.cpu_s / cost.idle.elapsed_s, 1000 * load.client_cpu_s / load.num_tokens
        lines.append(
            f"| {cost.profile} | {cost.cpu_ms_per_token:.3f} | {cost.limit_ms} "
            f"| {load.num_tokens / load.elapsed_s:.0f} | {load.num_tokens} | {idle:.3f} | {client_ms:.3f} |"
        )
    for cost in costs:
        lines += ["", f"{cost.profile}, ms per token by process: {_format_roles(cost)}."]
    return "\n".join(lines)


def format_roads(roads: Roads, scale: Scale) -> str:
    """A table of the three, and the ratios that count."""
    named = {
        "engine alone (a)": roads.engine,
        "whole road (b)": roads.whole_road,
        "transformers' continuous batching (c)": roads.transformers,
    }
    lines = [
        f"A random {scale.model} llama in float32, {scale.num_requests} requests, Poisson arrivals at "
        f"{scale.requests_per_s:g}/s, prompts {_span(scale.prompt_tokens)}, outputs {_span(scale.output_tokens)}, "
        f"{scale.num_threads} threads:",
        "",
        "| road | tokens/s | tokens | elapsed, s | CPU, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in named.items():
        lines.append(
            f"| {name} | {found.tokens_per_s:.1f} | {found.num_tokens} | {found.elapsed_s:.1f} | {found.cpu_s:.1f} |"
        )
    road = roads.whole_road.tokens_per_s
    lines += [
        "",
        f"b/a = {road / roads.engine.tokens_per_s:.2f} (aim: {MIN_ROAD_SHARE} or more), "
        f"b/c = {road / roads.transformers.tokens_per_s:.2f} (aim: above 1); first token over HTTP after "
        f"{roads.road_load.first_token_ms:.0f} ms (median); client {roads.road_load.client_cpu_s:.1f} s CPU.",
    ]
    return "\n".join(lines)


def _measure_whole_road(scale: Scale, items: Sequence[WorkItem]) -> tuple[Throughput, LoadReport]:
    args = {
        "name": MODEL_NAME,
        "source": str(BUILD_DIR / scale.model),
        "max_model_len": scale.max_model_len,
        "device": {"type": "cpu", "cpu_threads": scale.num_threads},
        "engine": {
            "prefix_cache": False,  # as the engine alone has it
            "max_num_seqs": scale.max_num_seqs,
            "max_num_batched_tokens": scale.max_num_batched_tokens,
            "block_size": scale.block_size,
            "kv_cache_bytes": scale.cache_tokens // scale.block_size * _block_bytes(scale),
        },
    }
    with serving("serve_app.app:build_model", args, THROUGHPUT_PROFILE) as served:  # as `rayshard serve` does it
        run_load(served.url, MODEL_NAME, [WorkItem(0.0, items[0].prompt_token_ids, 2)])
        before = take_snapshot(served.session_id)
        load = run_load(served.url, MODEL_NAME, items)
        usage = usage_between(before, take_snapshot(served.session_id))
    return Throughput(load.num_tokens, load.elapsed_s, usage.cpu_s), load


def _block_bytes(scale: Scale) -> int:
    spec = read_model_spec(BUILD_DIR / scale.model)
    (shard,) = plan_shards(spec, 1, 1).shards
    return kv_shape_on(shard, spec, "float32").block_bytes(scale.block_size)


def _run_alone(scale: Scale, module: str, *arguments: str) -> Throughput:
    """Run the workload in a process of its own that prints a Throughput."""
    command = [sys.executable, "-m", module, str(BUILD_DIR / scale.model), str(BUILD_DIR / "workload.json"), *arguments]
    sizes = {
        "--threads": scale.num_threads,
        "--max-num-seqs": scale.max_num_seqs,
        "--max-num-batched-tokens": scale.max_num_batched_tokens,
        "--cache-tokens": scale.cache_tokens,
    }
    for option, value in sizes.items():
        command += [option, str(value)]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Throughput(**json.loads(finished.stdout.splitlines()[-1]))


def _format_roles(cost: ServingCost, num_shown: int = 6) -> str:
    largest = sorted(cost.usage.cpu_s_by_role.items(), key=lambda pair: -pair[1])[:num_shown]
    return ", ".join(f"{role} {1000 * cpu_s / cost.load.num_tokens:.3f}" for role, cpu_s in largest)


def _span(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}-{bounds[1]}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tokens: the figures mean nothing")
    parser.add_argument("--record", action="store_true", help="append what was found to bench/results.md")
    parser.add_argument("--part", choices=["serving", "roads"], help="measure one part only")
    parser.add_argument("--threads", type=int, help="of torch, on each road; all cores unless said")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    if options.threads is not None:
        scale = replace(scale, num_threads=options.threads)
    machine = describe_machine()
    tables: list[str] = []
    if options.part != "roads":
        costs = [measure_serving_cost(scale, profile) for profile in PROFILES]
        tables.append(format_costs(costs, scale.num_streams))
        print(tables[-1], flush=True)
    if options.part != "serving":
        tables.append(format_roads(measure_roads(scale), scale))
        print(tables[-1], flush=True)
    if options.record:
        record("Overhead of serving" + (" (quick)" if options.quick else ""), machine, "\n\n".join(tables))


if __name__ == "__main__":
    main()
