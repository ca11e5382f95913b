"""What a streamed token costs over gRPC beside server-sent events: CPU of all serving processes, both in one run.

`python -m bench.grpc_streams --record`; the model computes nothing, so that the difference is the carriers'.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import torch

from bench.cpu_usage import measure_idle, take_snapshot, usage_between
from bench.generated import WorkItem
from bench.load import LoadFailedError, run_load
from bench.random_llama import SIZES, write_checkpoint
from bench.results import describe_machine, record
from bench.serving import BUILD_DIR, THROUGHPUT_PROFILE, free_port, serving
from bench.workload import equal_workload
from serve_app.protos import rayshard_pb2 as pb
from serve_app.protos import rayshard_pb2_grpc as services

MODEL_NAME = "bench"
PROFILES = {"plain": {}, "throughput": THROUGHPUT_PROFILE}
_SERVICES = ["serve_app.gateway.grpc.servicers.add_rayshard"]
_IDLE_S = 5.0
_SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Row:
    """One carrier in one profile."""

    profile: str
    carrier: str
    cpu_ms_per_token: float  # beyond idling
    tokens_per_s: float
    num_messages: int  # of all streams; 0: not counted


async def stream_all(address: str, items: Sequence[WorkItem], num_streams: int) -> int:
    """All requests by Generate, `num_streams` at once; gives the number of messages. Raises LoadFailedError."""
    waiting = iter(items)
    num_messages = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = services.RayshardStub(channel)  # type: ignore[no-untyped-call]  # generated

        async def work_off() -> None:
            nonlocal num_messages
            for item in waiting:
                sampling = pb.SamplingParams(max_tokens=item.num_outputs, ignore_eos=True)
                prompt = pb.TokenIds(ids=item.prompt_token_ids)
                num_tokens = 0
                async for piece in stub.Generate(
                    pb.GenerateRequest(model=MODEL_NAME, token_ids=prompt, sampling=sampling)
                ):
                    num_messages += 1
                    num_tokens += len(piece.token_ids)
                if num_tokens != item.num_outputs:
                    raise LoadFailedError(f"{item.num_outputs} tokens were asked for, {num_tokens} came")

        await asyncio.gather(*(work_off() for _ in range(num_streams)))
    return num_messages


def measure(profile: str, num_streams: int, num_rounds: int, num_outputs: int) -> list[Row]:
    """Both carriers, one after the other, on one server."""
    size = SIZES["tiny"]
    source_dir = write_checkpoint(size, torch.float32, BUILD_DIR / "tiny")
    args = {"name": MODEL_NAME, "source": str(source_dir), "engine": {"max_num_seqs": num_streams}}
    items = equal_workload(num_streams * num_rounds, 32, num_outputs, size.vocab_size)
    num_tokens = len(items) * num_outputs
    port = free_port()
    options = {"port": port, "grpc_servicer_functions": _SERVICES}
    address = f"127.0.0.1:{port}"
    rows = []
    with serving("bench.constant_engine:build_model", args, PROFILES[profile], options) as served:
        run_load(served.url, MODEL_NAME, items[:num_streams], num_streams)  # so that all is warm
        asyncio.run(stream_all(address, items[:num_streams], num_streams))
        time.sleep(_SETTLE_S)
        idle = measure_idle(served.session_id, _IDLE_S)
        for carrier in ("SSE", "gRPC"):
            before, begin_s, num_messages = take_snapshot(served.session_id), time.perf_counter(), 0
            if carrier == "SSE":
                run_load(served.url, MODEL_NAME, items, num_streams)
            else:
                num_messages = asyncio.run(stream_all(address, items, num_streams))
            elapsed_s = time.perf_counter() - begin_s
            usage = usage_between(before, take_snapshot(served.session_id))
            cpu_s = usage.cpu_s - idle.cpu_s / idle.elapsed_s * usage.elapsed_s
            rows.append(Row(profile, carrier, 1000 * cpu_s / num_tokens, num_tokens / elapsed_s, num_messages))
    return rows


def format_rows(rows: Sequence[Row], num_streams: int) -> str:
    """A table, and the ratios."""
    lines = [
        f"Streams of a model that computes nothing, {num_streams} at once; CPU of what serves, idling subtracted:",
        "",
        "| profile | carrier | ms CPU per token | tokens/s | messages |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.profile} | {row.carrier} | {row.cpu_ms_per_token:.3f} | {row.tokens_per_s:.0f} "
        f"| {row.num_messages or '-'} |"
        for row in rows
    ]
    lines.append("")
    for sse, over_grpc in zip(rows[::2], rows[1::2], strict=True):
        ratio = over_grpc.cpu_ms_per_token / sse.cpu_ms_per_token
        lines.append(f"- {sse.profile}: gRPC / SSE = {ratio:.2f} (aim: at most 1.5).")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="append the table to bench/results.md")
    parser.add_argument("--quick", action="store_true", help="show that it runs")
    arguments = parser.parse_args()
    machine = describe_machine()
    num_streams, num_rounds, num_outputs = (4, 1, 32) if arguments.quick else (32, 3, 512)
    profiles = ["plain"] if arguments.quick else list(PROFILES)
    rows = [row for profile in profiles for row in measure(profile, num_streams, num_rounds, num_outputs)]
    table = format_rows(rows, num_streams)
    print(table)
    if arguments.record:
        record("Streams over gRPC", machine, table)


if __name__ == "__main__":
    main()
