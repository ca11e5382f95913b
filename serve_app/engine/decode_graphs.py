"""Steps in which every sequence decodes: one function over buffers that stay, captured once for each number of them.

On CUDA a step of a small model waits for its launches, not for its kernels; a captured graph launches them all at once.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.attention.backend import DecodeBackend, DecodeRows
from serve_app.engine.attention.paged import DecodePart, PagedAttention
from serve_app.engine.block_tables import DeviceTables, IntArray
from serve_app.engine.kv_cache import KvCache
from serve_app.models.fused_attention import attention_kernels
from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import EngineLimits

logger = logging.getLogger(__name__)

Replay = Callable[[], Tensor]  # runs the captured work; the same tensor each time, with new contents
Capture = Callable[[Callable[[], Tensor]], Replay]

_EXACT_SIZES = (1, 2, 4)
_SIZE_STEP = 8  # of larger numbers of sequences
_MAX_SIZE = 256  # beyond it, kernels take longer than their launches


@dataclass(frozen=True, slots=True)
class DecodeColumns:
    """What a step reads of each of its sequences: [B] int64 each."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    lengths: Tensor
    slot_rows: Tensor


class DecodeBuffers:
    """What a captured step reads, for up to B sequences; rows behind the step's own are padding.

    The columns of each size lie one behind the other from the begin of the same memory, so that one copy fills them.
    """

    def __init__(
        self, stage: TransformersStage, limits: EngineLimits, tables: DeviceTables, device: torch.device
    ) -> None:
        self.max_rows = graph_sizes(limits.max_num_seqs)[0]
        scratch_slot = limits.num_blocks * limits.block_size  # in the block behind the last one
        self._padding = np.asarray([0, 0, scratch_slot, 1, tables.padding_row], dtype=np.int64)
        self._words = torch.zeros(len(self._padding) * self.max_rows, dtype=torch.int64, device=device)
        self.hidden: Tensor | None = None  # [B, *hidden_shape], where a stage comes before
        if not stage.shard.is_first:
            self.hidden = torch.zeros((self.max_rows, *stage.hidden_shape), dtype=stage.dtype, device=device)

    def columns(self, size: int) -> DecodeColumns:
        """What a step of `size` rows reads."""
        return DecodeColumns(*self._words[: len(self._padding) * size].view(-1, size).unbind())

    def padded(self, columns: Sequence[IntArray], size: int) -> IntArray:
        """A step's columns, in the order of DecodeColumns, with padding behind them: [5, size]."""
        padded = np.repeat(self._padding[:, None], size, axis=1)
        padded[:, : len(columns[0])] = columns
        return padded

    def fill(self, padded: Tensor) -> None:
        """Put a step [5, size] int64 in."""
        self._words[: padded.numel()].copy_(padded.view(-1))


class DecodeGraphs:
    """The captured steps of one stage."""

    def __init__(
        self,
        stage: TransformersStage,
        limits: EngineLimits,
        cache: KvCache,
        tables: DeviceTables,
        backend: DecodeBackend,
        device: torch.device,
        capture: Capture,
    ) -> None:
        """The cache has one block more than `limits` says, for padding."""
        assert backend.is_graph_safe
        self.buffers = DecodeBuffers(stage, limits, tables, device)
        self._stage = stage
        self._limits = limits
        self._cache = cache
        self._tables = tables
        self._backend = backend
        self._rows = torch.arange(self.buffers.max_rows, device=device)
        self._replays: dict[int, Replay] = {}
        for size in graph_sizes(limits.max_num_seqs):
            self.buffers.fill(torch.from_numpy(self.buffers.padded([np.empty(0, dtype=np.int64)] * 5, size)).to(device))
            self._replays[size] = capture(self._step_of(size))

    def size_for(self, num_sequences: int) -> int | None:
        """Rows of the smallest graph that runs so many sequences; None where they are too many."""
        return min((size for size in self._replays if size >= num_sequences), default=None)

    def run(self, size: int) -> Tensor:
        """Run a step over the first `size` rows of the buffers: hidden states [size, *hidden_shape], or logits.

        The tensor is overwritten by the next run.
        """
        return self._replays[size]()

    def _step_of(self, size: int) -> Callable[[], Tensor]:
        stage, columns = self._stage, self.buffers.columns(size)
        hidden = self.buffers.hidden
        inputs = columns.token_ids if hidden is None else hidden[:size]
        logit_rows = self._rows[:size] if stage.shard.is_last else None

        def step() -> Tensor:
            max_length = self._limits.max_model_len
            rows = DecodeRows(self._tables.of_rows(columns.slot_rows, max_length), columns.lengths, max_length)
            part = DecodePart(self._backend, rows, None)
            attention = PagedAttention(self._cache, stage.shard.first_layer, columns.slots, None, [], part)
            return stage.forward(inputs, columns.positions, attention, logit_rows)

        return step


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Numbers of sequences that are captured: 1, 2, 4, 8, 16, 24 …; the largest first, the others fit in its memory."""
    largest = min(max_num_seqs, _MAX_SIZE)
    sizes = [*(size for size in _EXACT_SIZES if size < largest), *range(_SIZE_STEP, largest, _SIZE_STEP), largest]
    return sizes[::-1]


@torch.inference_mode()
def capture_graphs(
    stage: TransformersStage,
    limits: EngineLimits,
    cache: KvCache,
    tables: DeviceTables,
    backend: DecodeBackend,
    device: torch.device,
    capture: Capture,
) -> DecodeGraphs | None:
    """All graphs of a stage; None, and a line in the log, where its forward cannot be captured."""
    began_s = time.monotonic()
    try:
        with attention_kernels(device):
            graphs = DecodeGraphs(stage, limits, cache, tables, backend, device, capture)
    except RuntimeError as error:  # a model that waits for the device in its forward, too little memory
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises where the device itself is lost
        logger.warning("steps are not captured as graphs, and each kernel is launched by itself: %s", error)
        return None
    logger.info("steps of up to %d sequences captured in %.1f s", graphs.buffers.max_rows, time.monotonic() - began_s)
    return graphs


def capture_on(device: torch.device) -> Capture | None:
    """How steps are captured on a device, if they are."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaCapture:
    """Captures functions as CUDA graphs that share one pool of memory, as one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """Run a function twice, so that nothing is left to be set up, then capture it."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = function()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
