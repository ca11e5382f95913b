"""What a step of decoding takes, beside what reading the weights takes: by dtype, by kernel, by sequences.

The engine in this process, on a random 120M llama; nn.Linear as it is, the kernel that is chosen for this CPU, and the
compiled kernels of steps in turn, medians. One thread is timed by its CPU, so that what else runs here counts little.
`--record` adds the table to bench/results.md.
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from bench.random_llama import SIZES, write_checkpoint
from bench.results import describe_machine, record
from serve_app.config.environment import read_environment
from serve_app.engine.attention.choice import DecodeSizes, attention_of
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.models.compiled.build import compiled_kernels
from serve_app.models.compiled.library import CompiledKernels
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits, LoadQuantization, ShardSpec, WeightScheme

NUM_PROMPT_TOKENS = 128
NUM_STEPS = 24  # of decoding, after two that warm up
NUM_WARM_STEPS = 2
BATCHES = (1, 8, 32)
LIMITS = EngineLimits(max_num_seqs=32, max_num_batched_tokens=4096, max_model_len=256, block_size=16, num_blocks=512)
INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_head=True)


@dataclass(frozen=True, slots=True)
class Way:
    """How the model is loaded."""

    name: str
    dtype: str
    kernel: str | None  # None: nn.Linear as it is
    quantization: LoadQuantization | None = None
    is_compiled: bool = False


WAYS = (
    Way("float32, nn.Linear", "float32", None),
    Way("float32", "float32", "auto"),
    Way("float32, compiled", "float32", "auto", is_compiled=True),
    Way("bfloat16, nn.Linear", "bfloat16", None),
    Way("bfloat16", "bfloat16", "auto"),
    Way("bfloat16, compiled", "bfloat16", "auto", is_compiled=True),
    Way("int8", "float32", "auto", INT8),
    Way("int8, compiled", "float32", "auto", INT8, is_compiled=True),
)


def now_s() -> float:
    """Of this thread's CPU where it is the only one of torch's, else of the clock."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def step_ms(loaded: LoadedStage, num_sequences: int, kernels: CompiledKernels | None = None) -> float:
    """The median of the steps in which all sequences decode."""
    device = torch.device("cpu")
    backend = attention_of("auto", loaded.stage, DecodeSizes.within(LIMITS), device, kernels).backend
    runner = ModelRunner(loaded.stage, LIMITS, LoneCommunicator(), device, backend)
    scheduler = Scheduler(LIMITS, num_stages=1, max_queued=64, has_prefix_cache=False, joins_blocks=True)
    params = SamplingParams(NUM_WARM_STEPS + NUM_STEPS + 1, seed=0, temperature=0.0, ignore_eos=True)
    drawn = torch.Generator().manual_seed(num_sequences)
    for index in range(num_sequences):
        prompt = torch.randint(0, SIZES["120M"].vocab_size, (NUM_PROMPT_TOKENS,), generator=drawn).tolist()
        scheduler.add(GenerateRequest(str(index), prompt, params))
    steps_ms = []
    while (step := scheduler.schedule()) is not None:
        began = now_s()
        output = runner.run(step)
        elapsed_ms = 1000 * (now_s() - began)
        assert output is not None
        scheduler.update(output)
        if len(step.token_ids) == num_sequences:
            steps_ms.append(elapsed_ms)
    return median(steps_ms[NUM_WARM_STEPS:])


def read_bytes_per_s() -> float:
    """How fast this process reads memory, by the sum of half a gigabyte."""
    numbers = torch.ones(128 * 1024**2)
    seconds = []
    for _ in range(5):
        began = now_s()
        numbers.sum()
        seconds.append(now_s() - began)
    return numbers.nbytes / min(seconds)


def measure(directory: Path, num_rounds: int) -> str:
    """The table."""
    whole = ShardSpec(0, 1, 0, 1, 0, SIZES["120M"].num_layers)
    source = write_checkpoint(SIZES["120M"], torch.float32, directory)
    environment = read_environment()
    compiled = compiled_kernels(environment.compiled_dir, environment.cxx_compiler)
    ways = [way for way in WAYS if compiled.kernels is not None or not way.is_compiled]
    kernels_of = {way.name: compiled.kernels if way.is_compiled else None for way in ways}
    loaded = {
        way.name: load_stage(
            source,
            way.dtype,
            whole,
            LoneCommunicator(),
            torch.device("cpu"),
            way.quantization,
            LIMITS.max_model_len,
            way.kernel,
            kernels_of[way.name],
        )
        for way in ways
    }
    rounds = []
    for _ in range(num_rounds):
        rate = read_bytes_per_s()
        taken = {
            (name, batch): step_ms(one, batch, kernels_of[name]) for batch in BATCHES for name, one in loaded.items()
        }
        rounds.append((rate, taken))
    rate = median(one[0] for one in rounds)
    heads = "".join(f" ms at {batch} |" for batch in BATCHES)
    lines = [
        f"{torch.get_num_threads()} threads read memory at {rate / 1e9:.1f} GB/s; the bound is all weights but the "
        f"embedding, once. Compiled kernels: {compiled}.",
        "",
        f"| weights | kernel |{heads} bound, ms | share of it reached at 1 |",
        f"| --- | --- |{' --- |' * len(BATCHES)} --- | --- |",
    ]
    embedding = SIZES["120M"].vocab_size * SIZES["120M"].hidden_size
    for way in ways:
        one = loaded[way.name]
        taken_ms = [median(round_ms[way.name, batch] for _rate, round_ms in rounds) for batch in BATCHES]
        bound_ms = 1000 * (one.parameter_bytes - embedding * one.stage.dtype.itemsize) / rate
        cells = "".join(f" {ms:.1f} |" for ms in taken_ms)
        kernel = "" if one.kernel is None else one.kernel.name
        lines.append(f"| {way.name} | {kernel} |{cells} {bound_ms:.1f} | {bound_ms / taken_ms[0]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as directory:
        table = measure(Path(directory), options.rounds)
    print(table)
    if options.record:
        record("Steps of decoding", machine, table)


if __name__ == "__main__":
    main()
