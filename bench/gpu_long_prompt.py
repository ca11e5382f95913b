"""A long prompt in chunks: the memory that its steps take, and which attention kernels ran."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from bench.engine_alone import EngineAlone
from bench.gpu_device import Bench
from bench.gpu_part import Rows
from bench.random_llama import SIZES, make_model, stage_of
from bench.workload import equal_workload
from serve_app.engine.kv_cache import kv_block_bytes
from serve_app.types.shards import EngineLimits

_BLOCK_SIZE = 16
_NUM_OUTPUTS = 4
# Scores kept whole are 13 GB for a chunk of 2,048 tokens behind 16k of 32 heads; what a step has to have is 0.3.
_MAX_STEP_BYTES = 1 << 30
_FUSED = ("flash", "efficient", "cudnn", "fmha", "decode_parts", "varlen")
_WHOLE_SCORES = {"aten::_scaled_dot_product_attention_math", "aten::_softmax"}
_MAX_NAME_LETTERS = 60


@dataclass(frozen=True, slots=True)
class LongPromptRow:
    """One prompt; None: not known on CPU."""

    model: str
    num_prompt_tokens: int
    num_chunk_tokens: int
    prompt_s: float  # until its first token
    weight_bytes: int | None
    cache_bytes: int
    peak_bytes: int | None
    fused_kernels: list[str]
    whole_score_kernels: list[str]  # operations that keep all scores

    @property
    def step_bytes(self) -> int | None:
        """At the peak, beside weights and cache."""
        if self.peak_bytes is None or self.weight_bytes is None:
            return None
        return self.peak_bytes - self.weight_bytes - self.cache_bytes

    @property
    def problem(self) -> str | None:
        """Scores that are kept whole."""
        if self.whole_score_kernels:
            return f"attention kept all scores: {', '.join(self.whole_score_kernels)}"
        if self.step_bytes is not None and self.step_bytes > _MAX_STEP_BYTES:
            return f"steps take {self.step_bytes / 2**30:.2f} GiB beside weights and KV cache"
        return None

    def __str__(self) -> str:
        speed = self.num_prompt_tokens / self.prompt_s
        line = (
            f"{self.model}: {self.num_prompt_tokens} prompt tokens in chunks of {self.num_chunk_tokens}: "
            f"{self.prompt_s:.2f} s, {speed:.0f} tokens/s"
        )
        if self.peak_bytes is None or self.weight_bytes is None or self.step_bytes is None:
            return line
        parts = (self.peak_bytes, self.weight_bytes, self.cache_bytes, self.step_bytes)
        peak, weights, cache, step = (f"{one / 2**30:.2f}" for one in parts)
        memory = f"peak {peak} GiB: weights {weights}, KV cache {cache}, the rest {step}"
        return f"{line};\n{memory}; kernels: {', '.join(self.fused_kernels)}"


def check_long_prompt(bench: Bench) -> Rows:
    """One row."""
    device = bench.device
    size, num_tokens, num_chunk_tokens = ("tiny", 512, 128) if bench.is_tiny else ("1B", 16_384, 2048)
    before_bytes = torch.cuda.memory_allocated(device) if bench.is_cuda else 0
    stage = stage_of(make_model(SIZES[size], torch.bfloat16, device))
    weight_bytes = torch.cuda.memory_allocated(device) - before_bytes if bench.is_cuda else None
    max_model_len = num_tokens + _NUM_OUTPUTS
    limits = EngineLimits(
        max_num_seqs=1,
        max_num_batched_tokens=num_chunk_tokens,
        max_model_len=max_model_len,
        block_size=_BLOCK_SIZE,
        num_blocks=-(-max_model_len // _BLOCK_SIZE) + 1,
    )
    engine = EngineAlone(stage, limits, device, has_graphs=False)
    items = equal_workload(1, num_tokens, _NUM_OUTPUTS, SIZES[size].vocab_size)
    engine.run(items)  # compiles
    peak_bytes: int | None = None
    if bench.is_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    prompt_s = engine.run(items)[0].times_s[0]
    kernels: list[str] = []
    if bench.is_cuda:
        peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            engine.run(items)
        kernels = [event.key for event in profiled.key_averages()]
    yield LongPromptRow(
        model=size,
        num_prompt_tokens=num_tokens,
        num_chunk_tokens=num_chunk_tokens,
        prompt_s=prompt_s,
        weight_bytes=weight_bytes,
        cache_bytes=limits.num_blocks * kv_block_bytes(stage, _BLOCK_SIZE),
        peak_bytes=peak_bytes,
        fused_kernels=fused_among(kernels),
        whole_score_kernels=sorted(_WHOLE_SCORES & set(kernels)),
    )


def fused_among(kernels: Iterable[str]) -> list[str]:
    """The names, shortened, of those that keep no scores."""
    found = {kernel[:_MAX_NAME_LETTERS] for kernel in kernels if any(part in kernel.lower() for part in _FUSED)}
    return sorted(found)
