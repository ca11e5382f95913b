"""Steps in which every sequence decodes: one function over buffers that stay, captured once for each number of them.

On CUDA a step of a small model waits for its launches, not for its kernels; a captured graph launches them all at once.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from serve_app.engine.attention.backend import DecodeBackend, DecodeRows
from serve_app.engine.attention.paged import DecodePart, PagedAttention
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


class DecodeBuffers:
    """What a captured step reads, for up to B sequences; rows behind the step's own are padding."""

    def __init__(self, stage: TransformersStage, limits: EngineLimits, device: torch.device) -> None:
        num_rows = graph_sizes(limits.max_num_seqs)[0]
        self._block_size = limits.block_size
        self._scratch_block = scratch = limits.num_blocks  # behind the last one
        self.token_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.slots = torch.full((num_rows,), scratch * limits.block_size, device=device)
        self.lengths = torch.ones(num_rows, dtype=torch.int64, device=device)
        self.tables = torch.full((num_rows, limits.max_blocks_per_seq), scratch, device=device)
        self.hidden: Tensor | None = None  # [B, *hidden_shape], where a stage comes before
        if not stage.shard.is_first:
            self.hidden = torch.zeros((num_rows, *stage.hidden_shape), dtype=stage.dtype, device=device)

    def fill(self, step: Sequence[Tensor], size: int) -> None:
        """Put a step of B sequences into the first rows, and padding behind them, up to `size` rows.

        step: token ids, positions, slots and lengths, each [B] int64, then tables [B, N] int64.
        """
        token_ids, positions, slots, lengths, tables = step
        num_rows = len(lengths)
        for buffer, values in zip(
            (self.token_ids, self.positions, self.slots, self.lengths),
            (token_ids, positions, slots, lengths),
            strict=True,
        ):
            buffer[:num_rows] = values
        self.tables[:num_rows, : tables.shape[1]] = tables
        if size > num_rows:
            rest = slice(num_rows, size)
            self.token_ids[rest] = self.positions[rest] = 0
            self.slots[rest] = self._scratch_block * self._block_size
            self.lengths[rest] = 1
            self.tables[rest, 0] = self._scratch_block


class DecodeGraphs:
    """The captured steps of one stage."""

    def __init__(
        self,
        stage: TransformersStage,
        limits: EngineLimits,
        cache: KvCache,
        backend: DecodeBackend,
        device: torch.device,
        capture: Capture,
    ) -> None:
        """The cache has one block more than `limits` says, for padding."""
        assert backend.is_graph_safe
        self.buffers = DecodeBuffers(stage, limits, device)
        self._stage = stage
        self._limits = limits
        self._cache = cache
        self._backend = backend
        self._rows = torch.arange(len(self.buffers.lengths), device=device)
        self._replays = {size: capture(self._step_of(size)) for size in graph_sizes(limits.max_num_seqs)}

    def size_for(self, num_sequences: int) -> int | None:
        """Rows of the smallest graph that runs so many sequences; None where they are too many."""
        return min((size for size in self._replays if size >= num_sequences), default=None)

    def run(self, size: int) -> Tensor:
        """Run a step over the first `size` rows of the buffers: hidden states [size, *hidden_shape], or logits.

        The tensor is overwritten by the next run.
        """
        return self._replays[size]()

    def _step_of(self, size: int) -> Callable[[], Tensor]:
        buffers, stage = self.buffers, self._stage
        rows = DecodeRows(buffers.tables[:size], buffers.lengths[:size], self._limits.max_model_len)
        attention = PagedAttention(
            self._cache,
            stage.shard.first_layer,
            buffers.slots[:size],
            None,
            [],
            DecodePart(self._backend, rows, None),
        )
        inputs = buffers.token_ids[:size] if buffers.hidden is None else buffers.hidden[:size]
        logit_rows = self._rows[:size] if stage.shard.is_last else None
        return lambda: stage.forward(inputs, buffers.positions[:size], attention, logit_rows)


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
    backend: DecodeBackend,
    device: torch.device,
    capture: Capture,
) -> DecodeGraphs | None:
    """All graphs of a stage; None, and a line in the log, where its forward cannot be captured."""
    began_s = time.monotonic()
    try:
        with attention_kernels(device):
            graphs = DecodeGraphs(stage, limits, cache, backend, device, capture)
    except RuntimeError as error:  # a model that waits for the device in its forward, too little memory
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises where the device itself is lost
        logger.warning("steps are not captured as graphs, and each kernel is launched by itself: %s", error)
        return None
    logger.info(
        "steps of up to %d sequences captured in %.1f s", len(graphs.buffers.lengths), time.monotonic() - began_s
    )
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
