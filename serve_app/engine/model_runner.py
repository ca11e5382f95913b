"""One shard's part of a step: from StepInput to hidden states for the next stage, or to tokens."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.attention.backend import DecodeBackend, DecodeRows
from serve_app.engine.attention.paged import DecodePart, PagedAttention, SequenceSpan
from serve_app.engine.block_tables import BlockTables, IntArray
from serve_app.engine.decode_graphs import Capture, DecodeGraphs, capture_graphs
from serve_app.engine.host_staging import HostStaging
from serve_app.engine.kv_cache import KvCache
from serve_app.engine.sampler import Sampler, prompt_logprobs
from serve_app.models.fused_attention import attention_kernels
from serve_app.models.transformers_model import TransformersStage
from serve_app.parallel.communicator import Communicator
from serve_app.types.generation import TokenLogprobs
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import DRAWN_BEFORE, StepInput, StepOutput


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
    ) -> None:
        """backend: decodes sequences together; None: one at a time. capture: of steps that only decode, if any."""
        self._stage = stage
        self._limits = limits
        self._communicator = communicator
        self._device = device
        self._backend = backend
        self._graphs: DecodeGraphs | None = None
        if backend is None or capture is None or not backend.is_graph_safe:
            self._cache = KvCache(stage, limits.num_blocks, limits.block_size, device)
        else:
            self._cache = KvCache(stage, limits.num_blocks + 1, limits.block_size, device)
            self._graphs = capture_graphs(stage, limits, self._cache, backend, device, capture)
        self._tables = BlockTables(limits)
        self._staging = HostStaging(device)
        self._last_drawn = np.zeros(limits.max_num_seqs, dtype=np.int64)  # by slot row; known to the rank that draws
        self._sampler = (
            Sampler(limits.max_num_seqs, stage.config.vocab_size, device)
            if stage.shard.is_last and stage.shard.rank == 0
            else None
        )

    @torch.inference_mode()
    def run(self, step: StepInput) -> StepOutput | None:
        """Run one step; the last stage's first rank gives the tokens, the others None."""
        self._take_blocks(step)
        if DRAWN_BEFORE in step.token_ids:
            step = self._with_drawn(step)
        with attention_kernels(self._device):
            replayed = self._replay(step)
            return self._forward(step) if replayed is None else self._finish_replay(step, replayed)

    def _with_drawn(self, step: StepInput) -> StepInput:
        """The step with the tokens that the Router did not know yet, when it sent it."""
        token_ids = np.asarray(step.token_ids, dtype=np.int64)
        is_missing = token_ids == DRAWN_BEFORE
        slot_rows = np.repeat(np.asarray(step.slot_rows, dtype=np.int64), step.num_tokens)
        drawn = self._last_drawn[slot_rows[is_missing]].clip(min=0)  # after logits that were not finite: any token
        if self._stage.shard.num_ranks > 1:
            if self._sampler is None:
                drawn = np.zeros_like(drawn)
            drawn = self._communicator.all_reduce(self._to_device(drawn)).cpu().numpy()
        token_ids[is_missing] = drawn
        return replace(step, token_ids=token_ids.tolist())

    def _forward(self, step: StepInput) -> StepOutput | None:
        positions, attention = self._prepare(step)
        shard = self._stage.shard
        if shard.is_first:
            inputs = torch.tensor(step.token_ids, dtype=torch.int64).to(self._device, non_blocking=True)
        else:
            shape = (len(step.token_ids), *self._stage.hidden_shape)
            inputs = self._communicator.receive_previous(
                torch.empty(shape, dtype=self._stage.dtype, device=self._device)
            )
        if not shard.is_last:
            self._communicator.send_next(self._stage.forward(inputs, positions, attention, None))
            return None
        draw_rows, logit_rows = _logit_rows(step)
        rows = torch.tensor(logit_rows, dtype=torch.int64).to(self._device, non_blocking=True)
        logits = self._stage.forward(inputs, positions, attention, rows)  # [N, V]
        return self._draw(step, logits, len(draw_rows))

    def _replay(self, step: StepInput) -> Tensor | None:
        """Run a captured step; None where there is none for this one. Every rank and stage decides alike."""
        if self._graphs is None or step.prompt_targets or not all(step.samples) or not _only_decodes(step):
            return None
        num_rows = len(step.slot_rows)
        size = self._graphs.size_for(num_rows)
        if size is None:
            return None
        buffers = self._graphs.buffers
        positions = np.asarray(step.num_computed, dtype=np.int64)
        slot_rows = np.asarray(step.slot_rows, dtype=np.int64)
        uploaded = self._staging.upload(
            [
                np.asarray(step.token_ids, dtype=np.int64),
                positions,
                self._tables.slots(slot_rows, positions),
                positions + 1,
                self._tables.of_rows(slot_rows, int(positions.max()) + 1),
            ]
        )
        buffers.fill(uploaded, size)
        if buffers.hidden is not None:
            self._communicator.receive_previous(buffers.hidden[:num_rows])
        return self._graphs.run(size)[:num_rows]

    def _finish_replay(self, step: StepInput, replayed: Tensor) -> StepOutput | None:
        if not self._stage.shard.is_last:
            self._communicator.send_next(replayed.clone())  # the next replay writes where it lies
            return None
        return self._draw(step, replayed, len(replayed))

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
            self._cache.copy(self._to_device(old), self._to_device(new))
        for slot_row, blocks in zip(step.slot_rows, step.new_blocks, strict=True):
            if blocks:
                self._tables.append(slot_row, blocks)

    def _prepare(self, step: StepInput) -> tuple[Tensor, PagedAttention]:
        """Positions [T] int64 of the step's tokens, and the attention that knows where they go."""
        num_tokens = np.asarray(step.num_tokens, dtype=np.int64)
        num_computed = np.asarray(step.num_computed, dtype=np.int64)
        first_tokens = np.cumsum(num_tokens) - num_tokens
        positions = np.arange(len(step.token_ids)) + np.repeat(num_computed - first_tokens, num_tokens)
        slot_rows = np.repeat(np.asarray(step.slot_rows, dtype=np.int64), num_tokens)
        slots = self._tables.slots(slot_rows, positions)
        decoded: list[int] = []  # indices of the sequences that the backend decodes
        spans: list[SequenceSpan] = []
        scattered: list[IntArray] = []
        num_gathered = 0
        for index, slot_row in enumerate(step.slot_rows):
            first, count, computed = int(first_tokens[index]), step.num_tokens[index], step.num_computed[index]
            if computed == 0:
                spans.append(SequenceSpan(first, count, computed))
                continue
            if count == 1 and self._backend is not None:
                decoded.append(index)
                continue
            first_slot = self._tables.first_slot(slot_row, computed + count)
            if first_slot is not None:
                spans.append(SequenceSpan(first, count, computed, first_slot=first_slot))
                continue
            blocks = self._tables.blocks_of(slot_row, computed + count)
            spans.append(SequenceSpan(first, count, computed, first_gathered=num_gathered))
            scattered.append(blocks)
            num_gathered += len(blocks) * self._limits.block_size
        attention = PagedAttention(
            self._cache,
            self._stage.shard.first_layer,
            self._to_device(slots),
            self._to_device(np.concatenate(scattered)) if scattered else None,
            spans,
            self._decode_part(step, decoded, first_tokens) if decoded else None,
        )
        return self._to_device(positions), attention

    def _decode_part(self, step: StepInput, decoded: list[int], first_tokens: IntArray) -> DecodePart:
        assert self._backend is not None
        lengths = np.asarray([step.num_computed[index] + 1 for index in decoded], dtype=np.int64)
        max_length = int(lengths.max())
        slot_rows = np.asarray([step.slot_rows[index] for index in decoded], dtype=np.int64)
        tables, uploaded_lengths, tokens = self._staging.upload(
            [self._tables.of_rows(slot_rows, max_length), lengths, first_tokens[decoded]]
        )
        rows = DecodeRows(tables, uploaded_lengths, max_length)
        return DecodePart(self._backend, rows, None if len(decoded) == len(step.token_ids) else tokens)

    def _to_device(self, array: IntArray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _draw(self, step: StepInput, logits: Tensor, num_drawn: int) -> StepOutput | None:
        """logits [N, V]: first those to draw from, then those of prompt log-probabilities."""
        if self._sampler is None:
            return None
        drawn_slot_rows = [
            slot_row for slot_row, is_drawn in zip(step.slot_rows, step.samples, strict=True) if is_drawn
        ]
        prompts = _prompt_logprobs(step, logits[num_drawn:])
        if not drawn_slot_rows:
            return StepOutput(step.step_id, [], None, prompts)
        drawn = self._sampler.sample(logits[:num_drawn], drawn_slot_rows)
        self._last_drawn[drawn_slot_rows] = drawn.token_ids
        return StepOutput(step.step_id, drawn.token_ids, drawn.logprobs, prompts)


def _only_decodes(step: StepInput) -> bool:
    return len(step.token_ids) == len(step.slot_rows) and all(step.num_computed)


def _logit_rows(step: StepInput) -> tuple[list[int], list[int]]:
    """Tokens of the step whose logits are drawn from, and those with the ones of prompt targets behind them."""
    ends = np.cumsum(np.asarray(step.num_tokens, dtype=np.int64))
    draw_rows = [int(ends[index]) - 1 for index, is_drawn in enumerate(step.samples) if is_drawn]
    logit_rows = list(draw_rows)
    for index, targets in step.prompt_targets.items():
        first = int(ends[index]) - step.num_tokens[index] + targets.offset
        logit_rows.extend(range(first, first + len(targets.token_ids)))
    return draw_rows, logit_rows


def _prompt_logprobs(step: StepInput, logits: Tensor) -> dict[int, list[TokenLogprobs]]:
    """Log-probabilities of each sequence's prompt targets; logits [N, V] of all of them, one after the other."""
    found: dict[int, list[TokenLogprobs]] = {}
    position = 0
    for index, targets in step.prompt_targets.items():
        count = len(targets.token_ids)
        found[index] = prompt_logprobs(logits[position : position + count], targets.token_ids, targets.num_top)
        position += count
    return found
