"""Decoding of a random 120M llama in float32, bfloat16 and quantized: ms a step at batch 1 and 8, and memory.

Speed in one process, the variants in turn, many short rounds, so that what slows the machine slows all of them; memory
in a process for each. Beside transformers, torchao and llama.cpp where they are installed. `--record` adds a table to
bench/results.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers import AutoModelForCausalLM

from bench import llama_cpp
from bench.random_llama import SIZES, write_checkpoint
from bench.results import describe_machine, record
from serve_app.compress.local_model import LocalModel
from serve_app.types.shards import LoadQuantization, WeightScheme

BATCH_SIZES = (1, 8)
PROMPT_TOKENS = 16
NUM_TOKENS = 24
NUM_ROUNDS = 9
INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_embedding=True, has_head=True)
INT4 = LoadQuantization(WeightScheme(4, group_size=32), has_embedding=True, has_head=True)
OURS: dict[str, tuple[str, LoadQuantization | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("float32", INT8),
    "int8, the rest bfloat16": ("bfloat16", INT8),
    "int4, the rest bfloat16": ("bfloat16", INT4),
}
OTHERS = ("transformers, float32", "transformers, torchao int8")
LLAMA_CPP = "llama.cpp, q8_0"
Run = Callable[[int, int], object]  # a batch size, and how many tokens to draw
Measure = Callable[[int], float]  # a batch size -> ms a step
Steps = dict[str, list[float]]  # ms a step of each variant, by batch size


def main() -> None:
    """Measure all variants that can run here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a llama's directory; without it, one is made")
    parser.add_argument("--memory-of", metavar="VARIANT", help="measure this one's memory alone, and print it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        print(measure_memory(options.memory_of, options.model))
        return
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.model or write_checkpoint(SIZES["120M"], torch.float32, Path(scratch))
        others = [name for name in OTHERS if "torchao" not in name or find_spec("torchao") is not None]
        variants = [*OURS, *others]
        memory = {variant: _memory_in_a_process(variant, directory, options.threads) for variant in variants}
        measures: dict[str, Measure] = {
            variant: partial(_ms_per_step, _load(variant, directory)) for variant in variants
        }
        if llama_cpp.is_installed():
            gguf = llama_cpp.write_gguf(directory, Path(scratch) / "q8_0.gguf")
            measures[LLAMA_CPP] = lambda batch_size: llama_cpp.ms_per_step(
                gguf, batch_size, PROMPT_TOKENS, NUM_TOKENS, options.threads
            )
        rounds = measure_speed(measures, options.rounds)
    text = _table(rounds, memory, options.threads)
    print(text)
    if options.record:
        record("Quantized models", machine, text)


def measure_speed(measures: Mapping[str, Measure], num_rounds: int) -> list[Steps]:
    """The variants in turn, after a round to warm up."""
    found = [
        {variant: [measure(batch_size) for batch_size in BATCH_SIZES] for variant, measure in measures.items()}
        for _ in range(num_rounds + 1)
    ]
    return found[1:]


def measure_memory(variant: str, directory: Path) -> int:
    """What this process holds alone after decoding, above what any model brings with it: bytes."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as scratch:
        LocalModel(write_checkpoint(SIZES["tiny"], torch.float32, Path(scratch))).generate([[1, 2]], 2)
    before = process.memory_full_info().uss
    run = _load(variant, directory)
    for batch_size in BATCH_SIZES:
        run(batch_size, 2 + NUM_TOKENS)
    return process.memory_full_info().uss - before


def _load(variant: str, directory: Path) -> Run:
    return _ours(*OURS[variant], directory) if variant in OURS else _transformers(variant, directory)


def _ours(dtype: str, quantization: LoadQuantization | None, directory: Path) -> Run:
    model = LocalModel(directory, dtype, quantization)
    return lambda batch_size, count: model.generate(_prompts(batch_size), count, ignore_eos=True)


def _transformers(variant: str, directory: Path) -> Run:
    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()
    if "torchao" in variant:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())

    @torch.inference_mode()
    def run(batch_size: int, count: int) -> object:
        ids = torch.tensor(_prompts(batch_size))
        mask = torch.ones_like(ids)
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )

    return run


def _ms_per_step(run: Run, batch_size: int) -> float:
    """What one more token costs, the prompt taken off."""
    seconds = []
    for count in (2, 2 + NUM_TOKENS):
        begin_s = time.perf_counter()
        run(batch_size, count)
        seconds.append(time.perf_counter() - begin_s)
    return 1000 * (seconds[1] - seconds[0]) / NUM_TOKENS


def _prompts(batch_size: int) -> list[list[int]]:
    return [[(7 * place + 31 * row) % 30_000 + 1 for place in range(PROMPT_TOKENS)] for row in range(batch_size)]


def _memory_in_a_process(variant: str, directory: Path, threads: int) -> int:
    command = [sys.executable, "-m", "bench.quantized", "--memory-of", variant, "--model", str(directory)]
    done = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"{variant}: {done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def _table(rounds: list[Steps], memory: Mapping[str, int], threads: int) -> str:
    lines = [
        f"A random llama of 120 M parameters, {threads} threads, greedy decoding after {PROMPT_TOKENS} tokens; median",
        f"of {len(rounds)} rounds. Ratios of speed are to our own float32 and bfloat16 of the same round; memory is",
        "what the process holds alone, above one with a tiny model.",
        "",
        "| variant | batch 1, ms a step | x float32 | x bfloat16 | batch 8, ms a step | x float32 | x bfloat16 | MiB "
        "| of float32 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in rounds[0]:
        cells = [variant]
        for place in range(len(BATCH_SIZES)):
            cells.append(f"{median(one[variant][place] for one in rounds):.1f}")
            for base in ("float32", "bfloat16"):
                cells.append(f"{median(one[base][place] / one[variant][place] for one in rounds):.2f}")
        held = memory.get(variant)
        cells += ["", ""] if held is None else [f"{held / 2**20:.0f}", f"{held / memory['float32']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
