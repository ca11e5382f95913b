"""Decode speed of the engine beside the bound of memory bandwidth and beside transformers' continuous batching."""

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from bench.engine_alone import EngineAlone
from bench.generated import steady_tokens_per_s
from bench.gpu_device import Bench, synchronize
from bench.gpu_part import Rows
from bench.random_llama import SIZES, LlamaSize, make_model, stage_of
from bench.transformers_batching import generate_batched
from bench.workload import equal_workload
from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import EngineLimits

HEADER = f"{'model':>6} {'batch':>5} {'tokens/s':>10} {'bound':>10} {'of bound':>8} {'transformers':>12} {'ratio':>6}"
_BATCH_SIZES = (1, 8, 64)
_BLOCK_SIZE = 16
_NUM_COPIES = 5
_ITEM_BYTES = 2  # bfloat16
_SPARE_BYTES = 4 << 30  # activations, logits, and transformers' own buffers


@dataclass(frozen=True, slots=True)
class Workpiece:
    """One model, and the batches that it decodes."""

    size: str
    batch_sizes: tuple[int, ...]
    num_prompt_tokens: int
    num_outputs: int


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One line of the table; None: not measured, `note` says why."""

    model: str
    batch_size: int
    tokens_per_s: float | None
    bound_tokens_per_s: float
    transformers_tokens_per_s: float | None
    note: str = ""

    @property
    def problem(self) -> str | None:
        """Speeds are told, not judged."""
        return None

    def __str__(self) -> str:
        if self.tokens_per_s is None:
            return f"{self.model:>6} {self.batch_size:>5} {self.note}"
        share = self.tokens_per_s / self.bound_tokens_per_s
        speeds = f"{self.tokens_per_s:10.1f} {self.bound_tokens_per_s:10.1f} {share:8.1%}"
        line = f"{self.model:>6} {self.batch_size:>5} {speeds}"
        if self.transformers_tokens_per_s is None:
            return f"{line} {'-':>12} {'-':>6} {self.note}"
        ratio = self.tokens_per_s / self.transformers_tokens_per_s
        return f"{line} {self.transformers_tokens_per_s:12.1f} {ratio:6.2f}"


def measure_all(bench: Bench) -> Rows:
    """A row for each model and batch size."""
    sizes, num_prompt_tokens, num_outputs = (("tiny",), 16, 12) if bench.is_tiny else (("1B", "8B"), 128, 128)
    for size in sizes:
        piece = Workpiece(size, _BATCH_SIZES, num_prompt_tokens, num_outputs)
        yield from measure_decode(piece, bench.device, bench.copy_bytes_per_s)


def measure_copy_bytes_per_s(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written each second by copies of `num_bytes`; the best of several."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    fastest_s = float("inf")
    for _ in range(_NUM_COPIES + 1):  # the first touches the memory
        synchronize(device)
        begin_s = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        fastest_s = min(fastest_s, time.perf_counter() - begin_s)
    return 2 * num_bytes / fastest_s


def measure_decode(piece: Workpiece, device: torch.device, copy_bytes_per_s: float) -> Iterator[DecodeRow]:
    """One row for each batch size."""
    size = SIZES[piece.size]
    bounds = {batch: batch * copy_bytes_per_s / _step_bytes(size, piece, batch) for batch in piece.batch_sizes}
    needed_bytes = _parameter_bytes(size) + _kv_token_bytes(size) * _max_tokens(piece) + _SPARE_BYTES
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < needed_bytes:
        for batch, bound in bounds.items():
            yield DecodeRow(piece.size, batch, None, bound, None, f"needs {needed_bytes / 2**30:.0f} GiB of GPU memory")
        return
    model = make_model(size, torch.bfloat16, device)
    stage = stage_of(model)
    for batch, bound in bounds.items():
        ours = _engine_tokens_per_s(stage, piece, batch, device)
        _release()
        try:
            theirs = _transformers_tokens_per_s(model, piece, batch)
            note = ""
        except (RuntimeError, ImportError, OSError, MemoryError) as error:  # a missing kernel, say, is theirs
            print(f"transformers: {error}", file=sys.stderr)
            theirs, note = None, f"({type(error).__name__})"
        _release()
        yield DecodeRow(piece.size, batch, ours, bound, theirs, note)


def _engine_tokens_per_s(stage: TransformersStage, piece: Workpiece, batch: int, device: torch.device) -> float | None:
    max_model_len = piece.num_prompt_tokens + piece.num_outputs
    limits = EngineLimits(
        max_num_seqs=batch,
        max_num_batched_tokens=max(2048, batch),
        max_model_len=max_model_len,
        block_size=_BLOCK_SIZE,
        num_blocks=(batch + 1) * (-(-max_model_len // _BLOCK_SIZE) + 1),
    )
    engine = EngineAlone(stage, limits, device)
    vocab_size = SIZES[piece.size].vocab_size
    engine.run(equal_workload(batch, piece.num_prompt_tokens, 4, vocab_size))
    return steady_tokens_per_s(
        engine.run(equal_workload(batch, piece.num_prompt_tokens, piece.num_outputs, vocab_size))
    )


def _transformers_tokens_per_s(model: PreTrainedModel, piece: Workpiece, batch: int) -> float | None:
    settings = ContinuousBatchingConfig()  # on CUDA it sizes itself by the free memory
    if model.device.type == "cpu":
        settings.block_size, settings.max_batch_tokens = _BLOCK_SIZE, max(2048, batch)
        settings.num_blocks = batch * (-(-(piece.num_prompt_tokens + piece.num_outputs) // _BLOCK_SIZE) + 1)
    items = equal_workload(batch, piece.num_prompt_tokens, piece.num_outputs, SIZES[piece.size].vocab_size)
    return steady_tokens_per_s(generate_batched(model, items, settings))


def _step_bytes(size: LlamaSize, piece: Workpiece, batch: int) -> float:
    """Bytes that one decode step has to read: the weights once, and the cache of sequences half way through."""
    embedding = 0 if size.is_tied else size.vocab_size * size.hidden_size * _ITEM_BYTES  # of which it reads B rows
    context = piece.num_prompt_tokens + piece.num_outputs / 2
    return _parameter_bytes(size) - embedding + batch * context * _kv_token_bytes(size)


def _parameter_bytes(size: LlamaSize) -> int:
    head_dim = size.hidden_size // size.num_heads
    attention = 2 * size.hidden_size * (size.hidden_size + size.num_kv_heads * head_dim)
    layer = attention + 3 * size.hidden_size * size.intermediate_size
    ends = (1 if size.is_tied else 2) * size.vocab_size * size.hidden_size
    return (size.num_layers * layer + ends) * _ITEM_BYTES


def _kv_token_bytes(size: LlamaSize) -> int:
    head_dim = size.hidden_size // size.num_heads
    return 2 * size.num_layers * size.num_kv_heads * head_dim * _ITEM_BYTES


def _max_tokens(piece: Workpiece) -> int:
    return max(piece.batch_sizes) * (piece.num_prompt_tokens + piece.num_outputs)


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
