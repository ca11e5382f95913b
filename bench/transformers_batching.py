"""transformers' own continuous batching, for comparison.

Needs torch and transformers only. `python -m bench.transformers_batching MODEL WORKLOAD` prints its Throughput as JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from bench.generated import Generated, Throughput, WorkItem
from bench.workload import read_workload

_NO_EOS = -1
_POLL_S = 1.0


class BatchingFailedError(RuntimeError):
    """transformers ended without an answer to every request."""


def generate_batched(
    model: PreTrainedModel, items: Sequence[WorkItem], settings: ContinuousBatchingConfig
) -> list[Generated]:
    """Answer all requests greedily, each from its arrival on. Raises BatchingFailedError."""
    hints = WorkloadHints(
        max_prompt_length=max(len(item.prompt_token_ids) for item in items),
        max_generated_length=max(item.num_outputs for item in items),
        num_requests=len(items),
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=_NO_EOS, pad_token_id=0)
    with model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=settings, workload_hints=hints
    ) as manager:
        begin_s = time.perf_counter()
        for index in sorted(range(len(items)), key=lambda index: items[index].arrival_s):
            time.sleep(max(0.0, items[index].arrival_s - (time.perf_counter() - begin_s)))
            manager.add_request(
                items[index].prompt_token_ids, str(index), items[index].num_outputs, record_timestamps=True
            )
        results = _collect(manager, len(items))
    return [_generated(results[str(index)], begin_s) for index in range(len(items))]


def _collect(manager: Any, num_requests: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    while len(results) < num_requests:
        result = manager.get_result(timeout=_POLL_S)
        if result is None and not manager.is_running():
            raise BatchingFailedError(f"transformers' batching ended after {len(results)} of {num_requests} requests")
        if result is not None and result.error is not None:
            raise BatchingFailedError(f"transformers' batching failed: {result.error}")
        if result is not None and result.is_finished():
            results[result.request_id] = result
    return results


def _generated(result: Any, begin_s: float) -> Generated:
    return Generated(list(result.generated_tokens), [time_s - begin_s for time_s in result.timestamps])


def main() -> None:
    """Measure a workload; the process's own CPU is counted from its first arrival on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--cache-tokens", type=int, default=32_768)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(str(options.model), dtype="auto", attn_implementation="sdpa").eval()
    settings = ContinuousBatchingConfig(  # with a block size of its own choice
        max_batch_tokens=options.max_num_batched_tokens, max_requests_per_batch=options.max_num_seqs
    )
    settings.num_blocks = options.cache_tokens // settings.block_size
    items = read_workload(options.workload)
    generate_batched(model, [WorkItem(0.0, items[0].prompt_token_ids, 2)], settings)
    begin_cpu_s = time.process_time()
    answers = generate_batched(model, items, settings)
    cpu_s = time.process_time() - begin_cpu_s
    elapsed_s = max(answer.times_s[-1] for answer in answers) - min(item.arrival_s for item in items)
    print(json.dumps(asdict(Throughput(sum(len(answer.token_ids) for answer in answers), elapsed_s, cpu_s))))


if __name__ == "__main__":
    main()
