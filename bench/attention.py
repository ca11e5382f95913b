"""Attention of a decoding step on CPU, all layers of a 120M llama: as it was, and as each backend does it.

As it was: every layer copies the keys and values of all sequences out of their scattered blocks, then attends one after
the other. All ways take turns; one thread is timed by its CPU. `--record` adds the table to bench/results.md.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from bench.engine_step import now_s, read_bytes_per_s
from bench.random_llama import SIZES, config_of
from bench.results import describe_machine, record
from serve_app.config.environment import read_environment
from serve_app.engine.attention.backend import DecodeBackend, DecodeRows
from serve_app.engine.attention.compiled import CompiledBackend
from serve_app.engine.attention.paged import DecodePart, PagedAttention, SequenceSpan
from serve_app.engine.kv_cache import KvCache
from serve_app.models.compiled.build import compiled_kernels
from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import ShardSpec

BEFORE, IN_PLACE, COMPILED = "gathered in each layer", "reference, in place", "compiled"
MAX_SHARE = 0.25  # of BEFORE, by the default on a CPU with a compiler, at LARGEST
LARGEST = (32, 1024)
POINTS = ((8, 256), (8, 1024), (8, 4096), (32, 256), LARGEST)  # sequences, tokens of each
BLOCK_SIZE = 16


def measure(
    num_sequences: int, context: int, backends: Mapping[str, DecodeBackend], num_rounds: int
) -> dict[str, float]:
    """Median ms of a step's attention by way; the keys and values read are those of `kv_bytes`."""
    size = SIZES["120M"]
    stage = TransformersStage(config_of(size), torch.float32, ShardSpec(0, 1, 0, 1, 0, size.num_layers))
    num_blocks = num_sequences * (context // BLOCK_SIZE)
    cache = KvCache(stage, num_blocks, BLOCK_SIZE, torch.device("cpu"))
    drawn = torch.Generator().manual_seed(0)
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_(generator=drawn)
    head_dim = size.hidden_size // size.num_heads
    query = torch.randn(size.num_heads, num_sequences, head_dim, generator=drawn)
    fresh = torch.randn(2, size.num_kv_heads, num_sequences, head_dim, generator=drawn)
    in_a_row = torch.arange(num_blocks).view(num_sequences, -1)
    scattered = torch.randperm(num_blocks, generator=drawn).view(num_sequences, -1)
    attentions = {BEFORE: _gathered(cache, scattered, context), IN_PLACE: _in_place(cache, in_a_row, context)}
    attentions |= {name: _decoded(cache, scattered, context, backend) for name, backend in backends.items()}

    def run(attention: PagedAttention) -> None:
        for layer in range(size.num_layers):
            attention.attend(layer, query, fresh[0], fresh[1], head_dim**-0.5, None, None)

    taken_ms: dict[str, list[float]] = {name: [] for name in attentions}
    with torch.inference_mode():
        for _ in range(1 + num_rounds):
            for name, attention in attentions.items():
                began = now_s()
                run(attention)
                taken_ms[name].append(1000 * (now_s() - began))
    return {name: median(times[1:]) for name, times in taken_ms.items()}


def kv_bytes(num_sequences: int, context: int) -> int:
    """Of the keys and values that a step's attention reads, float32."""
    size = SIZES["120M"]
    width = size.num_kv_heads * (size.hidden_size // size.num_heads)
    return num_sequences * context * size.num_layers * 2 * width * torch.float32.itemsize


def format_points(found: Mapping[tuple[int, int], Mapping[str, float]], bytes_per_s: float) -> str:
    """The table, the share of what was, and the growth with the context beside that of the bytes."""
    names = list(next(iter(found.values())))
    lines = [
        f"| sequences x tokens |{''.join(f' {name}, ms |' for name in names)} to read them, ms |",
        f"| --- |{' --- |' * (len(names) + 1)}",
    ]
    for (num_sequences, context), taken in found.items():
        bound_ms = 1000 * kv_bytes(num_sequences, context) / bytes_per_s
        cells = "".join(f" {taken[name]:.1f} |" for name in names)
        lines.append(f"| {num_sequences} x {context:,} |{cells} {bound_ms:.1f} |")
    largest, best = found[LARGEST], names[-1]
    share = largest[best] / largest[BEFORE]
    lines += ["", f"{best} ÷ {BEFORE} at {LARGEST[0]} x {LARGEST[1]:,}: {share:.2f} (aim: {MAX_SHARE})."]
    lines += [_growth(found, name) for name in names]
    return "\n".join(lines)


def _growth(found: Mapping[tuple[int, int], Mapping[str, float]], name: str) -> str:
    """How a way grows with the context, of as many sequences."""
    contexts = [context for num_sequences, context in found if num_sequences == POINTS[0][0]]
    times = [found[POINTS[0][0], context][name] for context in contexts]
    grown = ", ".join(f"{later / times[0]:.1f}" for later in times[1:])
    read = ", ".join(f"{later / contexts[0]:.0f}" for later in contexts[1:])
    return f"- {name}: from {contexts[0]} tokens on times {grown}, where the bytes read are times {read}"


def _gathered(cache: KvCache, blocks: Tensor, context: int) -> PagedAttention:
    spans = [
        SequenceSpan(row, 1, context - 1, first_gathered=row * blocks.shape[1] * BLOCK_SIZE)
        for row in range(len(blocks))
    ]
    return PagedAttention(cache, 0, _last_slots(blocks, context), blocks.flatten(), spans)


def _in_place(cache: KvCache, blocks: Tensor, context: int) -> PagedAttention:
    firsts: Sequence[int] = (blocks[:, 0] * BLOCK_SIZE).tolist()
    spans = [SequenceSpan(row, 1, context - 1, first_slot=first) for row, first in enumerate(firsts)]
    return PagedAttention(cache, 0, _last_slots(blocks, context), None, spans)


def _decoded(cache: KvCache, blocks: Tensor, context: int, backend: DecodeBackend) -> PagedAttention:
    lengths = torch.full((len(blocks),), context)
    part = DecodePart(backend, DecodeRows(blocks, lengths, context), None)
    return PagedAttention(cache, 0, _last_slots(blocks, context), None, [], part)


def _last_slots(blocks: Tensor, context: int) -> Tensor:
    last = context - 1
    return blocks[:, last // BLOCK_SIZE] * BLOCK_SIZE + last % BLOCK_SIZE


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine, environment = describe_machine(), read_environment()
    compiled = compiled_kernels(environment.compiled_dir, environment.cxx_compiler)
    backends = {} if compiled.kernels is None else {COMPILED: CompiledBackend(BLOCK_SIZE, compiled.kernels)}
    found = {point: measure(*point, backends, options.rounds) for point in POINTS}
    table = f"{options.threads} threads. Compiled kernels: {compiled}.\n\n{format_points(found, read_bytes_per_s())}"
    print(table)
    if options.record:
        record("Attention of a decoding step", machine, table)


if __name__ == "__main__":
    main()
