"""The engine in one process, without links: Scheduler and ModelRunner in a plain loop.

Needs torch and transformers only. `python -m bench.engine_alone MODEL WORKLOAD` prints its Throughput as JSON.
"""

import argparse
import json
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.generated import Generated, Throughput, WorkItem
from bench.workload import read_workload
from serve_app.config.environment import read_environment
from serve_app.engine.attention.choice import DecodeSizes, attention_of
from serve_app.engine.decode_graphs import capture_on
from serve_app.engine.launched_step import LaunchedStep
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.models.compiled.build import compiled_kernels
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.transformers_model import TransformersStage
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, OutputChunk, SamplingParams
from serve_app.types.shards import EngineLimits, ShardSpec


class EngineAlone:
    """One stage that is a whole model, with its cache and its scheduler."""

    def __init__(
        self,
        stage: TransformersStage,
        limits: EngineLimits,
        device: torch.device,
        attention: str = "auto",
        *,
        has_graphs: bool = True,
        kernels: CompiledKernels | None = None,
    ) -> None:
        choice = attention_of(attention, stage, DecodeSizes.within(limits), device, kernels)
        capture = capture_on(device) if has_graphs else None
        self._runner = ModelRunner(stage, limits, LoneCommunicator(), device, choice.backend, capture)
        self._limits = limits
        self._launches_ahead = device.type == "cuda"  # as shards do

    def run(self, items: Sequence[WorkItem], num_prompt_logprobs: int | None = None) -> list[Generated]:
        """Answer all requests, each from its arrival on."""
        scheduler = Scheduler(
            self._limits,
            num_stages=1,
            max_queued=len(items),
            has_prefix_cache=False,
            overlaps_steps=self._launches_ahead,
        )
        launched: deque[LaunchedStep] = deque()
        answers = [Generated([], []) for _ in items]
        order = sorted(range(len(items)), key=lambda index: items[index].arrival_s)
        begin_s = time.perf_counter()
        while order or scheduler.has_work:
            while order and items[order[0]].arrival_s <= time.perf_counter() - begin_s:
                index = order.pop(0)
                scheduler.add(_request(index, items[index], num_prompt_logprobs))
            while (step := scheduler.schedule()) is not None:
                pending = self._runner.launch(step)
                assert pending is not None
                launched.append(pending)
            if not launched:
                time.sleep(max(0.0, items[order[0]].arrival_s - (time.perf_counter() - begin_s)))
                continue
            output = launched.popleft().output()
            now_s = time.perf_counter() - begin_s
            for news in scheduler.update(output):
                _append(answers[int(news.sequence.request_id)], news.chunk, now_s)
        scheduler.check()
        return answers


def whole_model(
    source_dir: Path, dtype: str, device: torch.device, kernels: CompiledKernels | None = None
) -> TransformersStage:
    """A checkpoint as one stage. kernels: compiled ones of steps on CPU."""
    num_layers = json.loads((source_dir / "config.json").read_bytes())["num_hidden_layers"]
    shard = ShardSpec(0, 1, 0, 1, 0, num_layers)
    return load_stage(
        source_dir, dtype, shard, LoneCommunicator(), device, linear_kernel="auto", compiled=kernels
    ).stage


def _request(index: int, item: WorkItem, num_prompt_logprobs: int | None) -> GenerateRequest:
    params = SamplingParams(
        max_tokens=item.num_outputs,
        seed=0,
        temperature=0.0,
        ignore_eos=True,
        num_prompt_logprobs=num_prompt_logprobs,
    )
    return GenerateRequest(str(index), item.prompt_token_ids, params)


def _append(answer: Generated, chunk: OutputChunk, now_s: float) -> None:
    answer.token_ids.extend(chunk.token_ids)
    answer.times_s.extend([now_s] * len(chunk.token_ids))
    answer.prompt_logprobs.extend(chunk.prompt_logprobs or [])


def main() -> None:
    """Measure a workload; the process's own CPU is counted from its first arrival on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--cache-tokens", type=int, default=32_768)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    limits = EngineLimits(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        block_size=options.block_size,
        num_blocks=options.cache_tokens // options.block_size,
    )
    environment = read_environment()
    kernels = compiled_kernels(environment.compiled_dir, environment.cxx_compiler).kernels  # as a shard has them
    stage = whole_model(options.model, "auto", device, kernels)
    engine = EngineAlone(stage, limits, device, kernels=kernels)
    items = read_workload(options.workload)
    engine.run([WorkItem(0.0, items[0].prompt_token_ids, 2)])
    begin_cpu_s = time.process_time()
    answers = engine.run(items)
    cpu_s = time.process_time() - begin_cpu_s
    elapsed_s = max(answer.times_s[-1] for answer in answers) - min(item.arrival_s for item in items)
    print(json.dumps(asdict(Throughput(sum(len(answer.token_ids) for answer in answers), elapsed_s, cpu_s))))


if __name__ == "__main__":
    main()
