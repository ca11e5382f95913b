"""One client, served, beside the engine alone in one process: what serving leaves of its tokens/s.

A random 120M llama in float32, prompts of 128 tokens, answers of 64, one request after the other; the profiles of Serve
and the engine take turns. `python -m bench.lone_client` prints the table, `--record` adds it to bench/results.md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch

from bench.generated import Throughput
from bench.load import run_load
from bench.overhead import MIN_ROAD_SHARE, PROFILES
from bench.random_llama import SIZES, write_checkpoint
from bench.results import describe_machine, record
from bench.serving import BUILD_DIR, ROOT, serving
from bench.workload import equal_workload, read_workload, write_workload

NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS = 128, 64
ENGINE = "engine alone"


def measure_round(source: Path, workload: Path, num_threads: int) -> dict[str, float]:
    """Output tokens/s of the engine and of each profile."""
    found = {ENGINE: _engine_alone(source, workload, num_threads)}
    for name, (profile, _) in PROFILES.items():
        found[name] = _served(source, workload, num_threads, profile)
    return found


def format_rounds(rounds: list[dict[str, float]]) -> str:
    """A table of the medians, and each profile's share of the engine."""
    lines = ["| one client | tokens/s | of the engine alone |", "| --- | --- | --- |"]
    for name in rounds[0]:
        share = median(one[name] / one[ENGINE] for one in rounds)
        lines.append(f"| {name} | {median(one[name] for one in rounds):.1f} | {share:.2f} |")
    return "\n".join([*lines, "", f"Medians of {len(rounds)} rounds. Aim: {MIN_ROAD_SHARE} or more."])


def _engine_alone(source: Path, workload: Path, num_threads: int) -> float:
    command = [sys.executable, "-m", "bench.engine_alone", str(source), str(workload), "--max-num-seqs", "1"]
    command += ["--threads", str(num_threads), "--max-model-len", "256"]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Throughput(**json.loads(finished.stdout.splitlines()[-1])).tokens_per_s


def _served(source: Path, workload: Path, num_threads: int, profile: Mapping[str, str]) -> float:
    args = {
        "name": "lone",
        "source": str(source),
        "max_model_len": 256,
        "device": {"type": "cpu", "cpu_threads": num_threads},
        "engine": {"prefix_cache": False, "max_num_seqs": 1},  # as the engine alone has it
    }
    with serving("serve_app.app:build_model", args, profile) as served:
        items = read_workload(workload)
        run_load(served.url, "lone", items[:1], 1)
        load = run_load(served.url, "lone", items, 1)
    return load.num_tokens / load.elapsed_s


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="append what was found to bench/results.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    machine = describe_machine()
    source = write_checkpoint(SIZES["120M"], torch.float32, BUILD_DIR / "120M")
    items = equal_workload(options.requests, NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS, SIZES["120M"].vocab_size)
    workload = write_workload(items, BUILD_DIR / "lone.json")
    rounds = [measure_round(source, workload, options.threads) for _ in range(options.rounds)]
    table = f"{options.threads} threads.\n\n{format_rounds(rounds)}"
    print(table)
    if options.record:
        record("One client beside the engine", machine, table)


if __name__ == "__main__":
    main()
