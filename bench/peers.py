"""Ours, served, beside llama.cpp's engine and server and others that speak OpenAI's protocol: the same llama and load.

A random 120M llama, prompts of 128 tokens, answers of 64, at 1, 8 and 32 clients. Ours runs behind HTTP in Serve's
throughput mode; llama.cpp is measured by its own batched-bench, without a server, so what a server costs counts against
us alone, and by its own server, under the same load as ours. All take turns, medians of the rounds. Other servers
(vLLM) are measured where they run: `--server NAME=URL=MODEL`, started by hand with the checkpoint of `--keep DIR`.
`--record` adds the table to bench/results.md.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from bench import llama_cpp
from bench.generated import WorkItem
from bench.load import run_load
from bench.random_llama import SIZES, write_checkpoint
from bench.results import describe_machine, record
from bench.serving import THROUGHPUT_PROFILE, serving
from bench.workload import equal_workload

NUM_CLIENTS = (1, 8, 32)
NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS = 128, 64
MAX_TOKENS = 256  # of a sequence
NUM_ROUNDS = 3
MODEL = "peers"
INT8 = {"scheme": "int8", "include": ["head"]}
OURS: Mapping[str, Mapping[str, object]] = {
    "ours, int8": {"dtype": "float32", "quantization": INT8},
    "ours, bfloat16": {"dtype": "bfloat16"},
    "ours, float32": {"dtype": "float32"},
}
ENGINES = {"q8_0": "llama.cpp, q8_0", "bf16": "llama.cpp, bf16", "f32": "llama.cpp, f32"}
SERVERS = {kind: f"llama.cpp's server, {kind}" for kind in ENGINES}
AIMS = (  # ours / another, at NUM_CLIENTS
    ("ours, int8", "q8_0", (0.9, 1.3, 1.5)),
    ("ours, bfloat16", "bf16", (0.8, 1.0, 1.2)),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What clients saw, at one number of them."""

    tokens_per_s: float
    first_token_ms: float  # median


Round = dict[str, list[Found]]  # by system, at NUM_CLIENTS


@dataclass(frozen=True, slots=True)
class Server:
    """One that was started by hand."""

    name: str
    url: str
    model: str


def measure_round(source: Path, ggufs: Mapping[str, Path], servers: Sequence[Server], num_threads: int) -> Round:
    """All systems, one after the other."""
    found: Round = {}
    for name, settings in OURS.items():
        args = {
            "name": MODEL,
            "source": str(source),
            "max_model_len": MAX_TOKENS,
            "device": {"cpu_threads": num_threads},
            "engine": {"max_num_seqs": max(NUM_CLIENTS), "prefix_cache": False},
            **settings,
        }
        with serving("serve_app.app:build_model", args, THROUGHPUT_PROFILE) as served:
            found[name] = _measure_server(Server(name, served.url, MODEL))
    for kind, path in ggufs.items():
        found[ENGINES[kind]] = [_measure_llama_cpp(path, num_clients, num_threads) for num_clients in NUM_CLIENTS]
        if llama_cpp.has_server():
            with llama_cpp.serving(path, max(NUM_CLIENTS), MAX_TOKENS, num_threads) as url:
                found[SERVERS[kind]] = _measure_server(Server(SERVERS[kind], url, MODEL))
    return found | {server.name: _measure_server(server) for server in servers}


def format_rounds(rounds: Sequence[Round], num_threads: int) -> str:
    """The table, and the ratios that are aimed at."""
    clients = " / ".join(str(number) for number in NUM_CLIENTS)
    lines = [
        f"Output tokens/s and ms to the first token (median) at {clients} clients; {NUM_PROMPT_TOKENS} tokens in, "
        f"{NUM_OUTPUT_TOKENS} out, {num_threads} threads, medians of {len(rounds)} rounds:",
        "",
        "| system | tokens/s | first token, ms |",
        "| --- | --- | --- |",
    ]
    rates = {}
    for name in rounds[0]:
        columns = range(len(NUM_CLIENTS))
        rates[name] = [median(one[name][column].tokens_per_s for one in rounds) for column in columns]
        firsts = [median(one[name][column].first_token_ms for one in rounds) for column in columns]
        shown = " / ".join(f"{rate:.0f}" for rate in rates[name])
        lines.append(f"| {name} | {shown} | {' / '.join(f'{first:.0f}' for first in firsts)} |")
    for own, kind, aims in AIMS:
        for other in (name for name in (ENGINES[kind], SERVERS[kind]) if name in rates):
            ratios = " / ".join(f"{mine / its:.2f}" for mine, its in zip(rates[own], rates[other], strict=True))
            lines += ["", f"{own} ÷ {other}: {ratios} (aim: {' / '.join(str(aim) for aim in aims)})."]
    for names, program in ((ENGINES, llama_cpp.PROGRAM), (SERVERS, llama_cpp.SERVER)):
        missing = [name for name in names.values() if name not in rates]
        if missing:
            lines += ["", f"Not here: {', '.join(missing)} (`{program}` on the PATH, and the package gguf)."]
    return "\n".join(lines)


def _measure_server(server: Server) -> list[Found]:
    vocab_size = SIZES["120M"].vocab_size
    lengths = NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS
    found = []
    for num_clients in NUM_CLIENTS:
        run_load(server.url, server.model, equal_workload(num_clients, NUM_PROMPT_TOKENS, 2, vocab_size), num_clients)
        items: list[WorkItem] = equal_workload(num_clients * (2 if num_clients > 1 else 4), *lengths, vocab_size)
        load = run_load(server.url, server.model, items, num_clients)
        found.append(Found(load.num_tokens / load.elapsed_s, load.first_token_ms))
    return found


def _measure_llama_cpp(model: Path, num_clients: int, num_threads: int) -> Found:
    times = llama_cpp.batch_times(model, num_clients, NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS, num_threads)
    num_tokens = num_clients * NUM_OUTPUT_TOKENS
    return Found(num_tokens / (times.prompt_s + times.decode_s), 1000 * times.prompt_s)


def _server(text: str) -> Server:
    name, url, model = text.split("=", 2)
    return Server(name, url, model)


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--server", type=_server, action="append", default=[], metavar="NAME=URL=MODEL")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the checkpoint there, for other servers")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        source = write_checkpoint(SIZES["120M"], torch.float32, options.keep or Path(scratch) / "model")
        ggufs = {}
        if llama_cpp.is_installed():
            ggufs = {kind: llama_cpp.write_gguf(source, Path(scratch) / f"{kind}.gguf", kind) for kind in ENGINES}
        rounds = [measure_round(source, ggufs, options.server, options.threads) for _ in range(options.rounds)]
    text = format_rounds(rounds, options.threads)
    print(text)
    if options.record:
        record("Beside others", machine, text)


if __name__ == "__main__":
    main()
