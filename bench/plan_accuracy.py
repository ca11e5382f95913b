"""How near a plan comes to what a shard takes and does: a random llama on this CPU, one thread, by CPU time.

    python -m bench.plan_accuracy calibrate DEVICES.json    # once: the device `cpu` of one thread, by CPU time
    python -m bench.plan_accuracy compare DEVICES.json

Other processes cost wall time and not CPU time, so that a busy machine tells nearly what a quiet one does.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.random_llama import SIZES, write_checkpoint
from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.engine.calibration import CpuMeter, kernels_of_user
from serve_app.engine.generation_engine import GenerationEngine
from serve_app.engine.model_runner import ModelRunner
from serve_app.freed_memory import resident_bytes
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.device_profiles import PlannedDevice, load_profiles, measured_profile
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.model_plan import ModelPlan, plan_model
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits

_NUM_DECODES = 24  # in steps without prompts
_MIB = 2**20


def main() -> None:
    """Calibrate, or compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["calibrate", "compare"])
    parser.add_argument("devices", type=Path)
    parser.add_argument("--size", default="120M", choices=SIZES)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "calibrate":
        reserve = resident_bytes()
        meter = CpuMeter(clock=time.process_time, kernels=kernels_of_user())
        found = measured_profile(load_profiles()["cpu"], {**meter.measure(), "reserve": reserve})
        arguments.devices.write_text(json.dumps({"cpu": found.model_dump(exclude_none=True)}, indent=1))
        return
    with tempfile.TemporaryDirectory() as directory:
        _compare(arguments, Path(directory))


def _compare(arguments: argparse.Namespace, directory: Path) -> None:
    size, dtype = SIZES[arguments.size], getattr(torch, arguments.dtype)
    write_checkpoint(size, dtype, directory)
    config = ModelConfig.model_validate(
        {
            "name": "bench",
            "source": str(directory),
            "max_model_len": 2048,
            "engine": {"kv_cache_bytes": 128 * _MIB, "max_num_seqs": 16, "max_num_batched_tokens": 512},
        }
    )
    profile = load_profiles(arguments.devices)["cpu"]
    device = PlannedDevice("cpu", profile, 64 * 2**30)
    planned = plan_model(read_model_spec(directory), config, device, 1)
    engine, runner, limits = _shard(config, directory)
    _tell_memory(planned, engine)
    assert planned.rates is not None
    rates = planned.rates
    for num_sequences in (1, rates.decode_sequences):
        predicted = rates.decode_tokens_per_s if num_sequences == 1 else rates.total_decode_tokens_per_s
        prefill, decode = _run(runner, limits, num_sequences, rates.context_tokens)
        print(f"{num_sequences} sequences: decode {_beside(predicted, decode, 1)} tokens/s")
        print(f"{num_sequences} sequences: prefill {_beside(rates.prefill_tokens_per_s, prefill, 1)} tokens/s")
    _tell_memory(planned, engine)


def _shard(config: ModelConfig, directory: Path) -> tuple[GenerationEngine, ModelRunner, EngineLimits]:
    plan = plan_generator(config, directory, read_environment()).refuse_problems()
    settings = plan.settings(plan.shards[0], 1)
    engine = GenerationEngine(settings, torch.device("cpu"))
    report = engine.load(LoneCommunicator())
    kept = config.engine
    limits = EngineLimits(
        kept.max_num_seqs, kept.max_num_batched_tokens, plan.max_model_len, kept.block_size, report.num_blocks
    )
    engine.allocate(limits)
    assert engine._runner is not None
    print(f"attention={report.attention} linear_kernel={report.linear_kernel} compiled={report.compiled}")
    return engine, engine._runner, limits


def _run(runner: ModelRunner, limits: EngineLimits, num_sequences: int, context: int) -> tuple[float, float]:
    """Tokens of prompts and of answers, each second of CPU: of sequences of `context` tokens at the middle."""
    scheduler = Scheduler(limits, num_stages=1, max_queued=1024, has_prefix_cache=False)
    num_tokens = _NUM_DECODES + 2 * num_sequences  # the first ones decode beside the prompts of the last
    num_prompt = context - num_tokens // 2
    for number in range(num_sequences):
        params = SamplingParams(num_tokens, seed=0, temperature=0.0, ignore_eos=True)
        prompt = [1 + (number * 37 + index * 11) % 1000 for index in range(num_prompt)]
        scheduler.add(GenerateRequest(f"r{number}", prompt, params))
    prompts: list[tuple[int, float]] = []
    decodes: list[float] = []
    while (step := scheduler.schedule()) is not None:
        began_s = time.process_time()
        output = runner.run(step)
        cpu_s = time.process_time() - began_s
        assert output is not None
        scheduler.update(output)
        if max(step.num_tokens) > 1:
            prompts.append((sum(step.num_tokens), cpu_s))
        elif len(step.slot_rows) == num_sequences:
            decodes.append(cpu_s)
    prefill = sum(count for count, _ in prompts) / sum(seconds for _, seconds in prompts)
    return prefill, num_sequences / _median(decodes)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _tell_memory(planned: ModelPlan, engine: GenerationEngine) -> None:
    assert planned.memory is not None
    (shard,), taken = planned.memory.shards, engine.memory_taken()
    print(f"KV cache {_beside(shard.kv_cache_bytes, taken.kv_cache_bytes, _MIB)} MiB")
    print(f"whole shard {_beside(shard.total_bytes, taken.process_bytes, _MIB)} MiB")


def _beside(predicted: float, measured: float, unit: int) -> str:
    return f"{predicted / unit:.1f} planned, {measured / unit:.1f} measured ({predicted / measured - 1:+.1%})"


if __name__ == "__main__":
    main()
