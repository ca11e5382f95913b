"""One shard's part of a step: from StepInput to hidden states for the next stage, or to tokens."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.attention.backend import DecodeBackend, DecodeRows
from serve_app.engine.attention.paged import DecodePart, PagedAttention
from serve_app.engine.block_tables import BlockTables, DeviceTables
from serve_app.engine.busy_time import busy_time_of
from serve_app.engine.decode_graphs import Capture, DecodeGraphs, capture_graphs
from serve_app.engine.grammars import Grammars
from serve_app.engine.host_staging import Event, HostStaging
from serve_app.engine.kv_cache import KvCache
from serve_app.engine.launched_step import LaunchedStep, PromptColumns
from serve_app.engine.sampler import Sampler
from serve_app.engine.step_layout import (
    StepLayout,
    drawn_slot_rows,
    lay_out,
    logit_rows,
    only_decodes,
    target_ids,
    unknown_tokens,
)
from serve_app.models.fused_attention import attention_kernels
from serve_app.models.transformers_model import TransformersStage
from serve_app.parallel.communicator import Communicator
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput, StepOutput


class ModelRunner:
    """Runs a loaded stage over its KV cache. All shards of a group run the same steps in the same order."""

    def __init__(
        self,
        stage: TransformersStage,
        limits: EngineLimits,
        communicator: Communicator,
        device: torch.device,
        backend: DecodeBackend | None = None,
        capture: Capture | None = None,
        make_event: Callable[[], Event] | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """backend: decodes sequences together; None: one at a time. capture: of steps that only decode, if any.

        make_event: of the device, where the host does not wait for it; None: that of CUDA there.
        grammars: of sequences that are held to one; for the rank that draws.
        """
        self._stage = stage
        self._limits = limits
        self._communicator = communicator
        self._device = device
        self._backend = backend
        self._graphs: DecodeGraphs | None = None
        self.busy = busy_time_of(device)
        self._make_event = torch.cuda.Event if make_event is None and device.type == "cuda" else make_event
        self._tables = BlockTables(limits, keeps_changes=backend is not None)
        self._device_tables = None if backend is None else DeviceTables(limits, device)
        if backend is None or capture is None or not backend.is_graph_safe:
            self._cache = KvCache(stage, limits.num_blocks, limits.block_size, device)
        else:
            assert self._device_tables is not None
            self._cache = KvCache(stage, limits.num_blocks + 1, limits.block_size, device)
            self._graphs = capture_graphs(stage, limits, self._cache, self._device_tables, backend, device, capture)
        self._staging = HostStaging(device)
        # By slot row; known to the rank that draws.
        self._last_drawn = torch.zeros(limits.max_num_seqs, dtype=torch.int64, device=device)
        self._sampler = (
            Sampler(limits.max_num_seqs, stage.config.vocab_size, device, grammars=grammars, kernels=stage.kernels)
            if stage.shard.is_last and stage.shard.rank == 0
            else None
        )

    @property
    def kv_cache_bytes(self) -> int:
        """Of its KV cache."""
        return self._cache.num_bytes

    def run(self, step: StepInput) -> StepOutput | None:
        """Run one step; the last stage's first rank gives the tokens, the others None."""
        launched = self.launch(step)
        return None if launched is None else launched.output()

    @torch.inference_mode()
    def launch(self, step: StepInput) -> LaunchedStep | None:
        """The same without waiting for the device: another step may be launched before the tokens are read."""
        if self._stage.shard.is_first:
            self.busy.begin()
        self._take_blocks(step)
        with attention_kernels(self._device):
            size = self._graphs.size_for(len(step.slot_rows)) if self._graphs and only_decodes(step) else None
            launched = self._forward(step) if size is None else self._replay(step, size)
        self.busy.end()
        return launched

    def _forward(self, step: StepInput) -> LaunchedStep | None:
        shard = self._stage.shard
        layout = self._lay_out(step)
        num_drawn, rows = logit_rows(step)
        places, blocks = self._tables.take_changes()
        unknown, unknown_rows = unknown_tokens(step)
        uploaded = self._staging.upload(
            [
                np.asarray(step.token_ids if shard.is_first else [], dtype=np.int64),
                layout.positions,
                rows,
                target_ids(step),
                unknown,
                unknown_rows,
                places,
                blocks,
                layout.slots,
                layout.scattered,
                layout.decoded,
                layout.lengths,
                layout.decoded_tokens,
            ]
        )
        inputs, positions, rows_to_draw, targets, unknown_places, drawn_rows, changed, changed_blocks = uploaded[:8]
        if self._device_tables is not None:
            self._device_tables.write(changed, changed_blocks)
        attention = self._attention(layout, *uploaded[8:])
        if shard.is_first:
            self._put_drawn(inputs, unknown_places, drawn_rows)
        else:
            shape = (len(step.token_ids), *self._stage.hidden_shape)
            inputs = torch.empty(shape, dtype=self._stage.dtype, device=self._device)
            self._receive(inputs)
        if not shard.is_last:
            self._communicator.send_next(self._stage.forward(inputs, positions, attention, None))
            return None
        logits = self._stage.forward(inputs, positions, attention, rows_to_draw)  # [N, V]
        return self._draw(step, logits, num_drawn, targets)

    def _lay_out(self, step: StepInput) -> StepLayout:
        return lay_out(step, self._tables, self._limits.block_size, has_backend=self._backend is not None)

    def _replay(self, step: StepInput, size: int) -> LaunchedStep | None:
        """Run a captured step of `size` rows. Every rank and stage decides alike."""
        assert self._graphs is not None
        assert self._device_tables is not None
        buffers, num_rows = self._graphs.buffers, len(step.slot_rows)
        positions = np.asarray(step.num_computed, dtype=np.int64)
        slot_rows = np.asarray(step.slot_rows, dtype=np.int64)
        slots = self._tables.slots(slot_rows, positions)
        token_ids = np.asarray(step.token_ids, dtype=np.int64)
        columns = [token_ids, positions, slots, positions + 1, slot_rows]
        padded, unknown, unknown_rows, changed, changed_blocks = self._staging.upload(
            [buffers.padded(columns, size), *unknown_tokens(step), *self._tables.take_changes()]
        )
        self._device_tables.write(changed, changed_blocks)
        buffers.fill(padded)
        if buffers.hidden is None:
            self._put_drawn(buffers.columns(size).token_ids, unknown, unknown_rows)
        else:
            self._receive(buffers.hidden[:num_rows])
        replayed = self._graphs.run(size)[:num_rows]
        if not self._stage.shard.is_last:
            self._communicator.send_next(replayed.clone())  # the next replay writes where it lies
            return None
        return self._draw(step, replayed, num_rows, unknown[:0])

    def _receive(self, hidden: Tensor) -> None:
        """Fill a tensor with the hidden states of the stage before; the wait for them is none of the work."""
        self._communicator.receive_previous(hidden)
        self.busy.begin()

    def _take_blocks(self, step: StepInput) -> None:
        """Start new sequences and append the step's blocks to the sequences' tables."""
        for start in step.starts:
            self._tables.clear(start.slot_row)
            if self._sampler is not None:
                self._sampler.start(start)
        for index in step.moved:
            self._tables.clear(step.slot_rows[index])
        if step.copies:
            old, new = np.ascontiguousarray(np.asarray(step.copies, dtype=np.int64).T)
            self._cache.copy(*self._staging.upload([old, new]))
        for slot_row, blocks in zip(step.slot_rows, step.new_blocks, strict=True):
            if blocks:
                self._tables.append(slot_row, blocks)

    def _put_drawn(self, token_ids: Tensor, places: Tensor, slot_rows: Tensor) -> None:
        """Put what the shards have drawn before into token_ids [T], at places [n] of slot rows [n], all int64."""
        if not len(places):
            return
        drawn = self._last_drawn[slot_rows].clamp(min=0)  # after logits that were not finite: any token
        if self._stage.shard.num_ranks > 1:
            if self._sampler is None:
                drawn = torch.zeros_like(drawn)
            drawn = self._communicator.all_reduce(drawn)
        token_ids.index_copy_(0, places, drawn)

    def _attention(
        self, layout: StepLayout, slots: Tensor, scattered: Tensor, decoded: Tensor, lengths: Tensor, tokens: Tensor
    ) -> PagedAttention:
        """The attention of a step that knows where its tokens go."""
        part = None
        if self._backend is not None and self._device_tables is not None and len(layout.decoded):
            max_length = int(layout.lengths.max())
            rows = DecodeRows(self._device_tables.of_rows(decoded, max_length), lengths, max_length)
            part = DecodePart(self._backend, rows, tokens if layout.spans else None)
        blocks = scattered if len(layout.scattered) else None
        return PagedAttention(self._cache, self._stage.shard.first_layer, slots, blocks, layout.spans, part)

    def _draw(self, step: StepInput, logits: Tensor, num_drawn: int, targets: Tensor) -> LaunchedStep | None:
        """logits [N, V]: first those to draw from, then those of prompt log-probabilities, of targets [n] int64."""
        if self._sampler is None:
            return None
        drawn = None
        if num_drawn:
            drawn = self._sampler.draw(logits[:num_drawn], drawn_slot_rows(step))
            self._last_drawn.index_copy_(0, drawn.slot_rows, drawn.token_ids)
            drawn = drawn.to_host()
        prompts: dict[int, PromptColumns] = {}
        first = 0
        for index, asked in step.prompt_targets.items():
            part = slice(first, first := first + len(asked.token_ids))
            prompts[index] = PromptColumns.of(logits[num_drawn:][part], targets[part], asked.num_top)
        arrival = self._make_event() if self._make_event is not None else None
        if arrival is not None:
            arrival.record()
        return LaunchedStep(step.step_id, drawn, prompts, arrival)
