"""One shard's part of a step: from StepInput to hidden states for the next stage, or to tokens."""

from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from serve_app.engine.attention import PagedAttention, SequenceSpan
from serve_app.engine.kv_cache import KvCache
from serve_app.engine.sampler import Sampler, prompt_logprobs
from serve_app.models.transformers_model import TransformersStage
from serve_app.parallel.communicator import Communicator
from serve_app.types.generation import TokenLogprobs
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput, StepOutput

IntArray = NDArray[np.int64]

# Not cuDNN: it builds and keeps a graph for each length of keys, and decoding has a new one in each step.
_SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ModelRunner:
    """Runs a loaded stage over its KV cache. All shards of a group run the same steps in the same order."""

    def __init__(
        self, stage: TransformersStage, limits: EngineLimits, communicator: Communicator, device: torch.device
    ) -> None:
        self._stage = stage
        self._limits = limits
        self._communicator = communicator
        self._device = device
        self._cache = KvCache(stage, limits.num_blocks, limits.block_size, device)
        self._block_tables = np.zeros((limits.max_num_seqs, limits.max_blocks_per_seq), dtype=np.int64)
        self._num_held_blocks = [0] * limits.max_num_seqs
        self._num_run_blocks = [0] * limits.max_num_seqs  # how many from the first on lie one after the other
        self._sampler = (
            Sampler(limits.max_num_seqs, stage.config.vocab_size, device)
            if stage.shard.is_last and stage.shard.rank == 0
            else None
        )

    @torch.inference_mode()
    def run(self, step: StepInput) -> StepOutput | None:
        """Run one step; the last stage's first rank gives the tokens, the others None."""
        self._take_blocks(step)
        with sdpa_kernel(_SDPA_BACKENDS) if self._device.type == "cuda" else nullcontext():
            return self._forward(step)

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
        return self._draw(step, inputs, positions, attention)

    def _take_blocks(self, step: StepInput) -> None:
        """Start new sequences and append the step's blocks to the sequences' tables."""
        for start in step.starts:
            self._num_held_blocks[start.slot_row] = self._num_run_blocks[start.slot_row] = 0
            if self._sampler is not None:
                self._sampler.start(start)
        for index in step.moved:
            self._num_held_blocks[step.slot_rows[index]] = self._num_run_blocks[step.slot_rows[index]] = 0
        if step.copies:
            old, new = np.ascontiguousarray(np.asarray(step.copies, dtype=np.int64).T)
            self._cache.copy(self._to_device(old), self._to_device(new))
        for slot_row, blocks in zip(step.slot_rows, step.new_blocks, strict=True):
            if blocks:
                held = self._num_held_blocks[slot_row]
                self._block_tables[slot_row, held : held + len(blocks)] = blocks
                self._num_held_blocks[slot_row] = held + len(blocks)
                self._extend_run(slot_row)

    def _prepare(self, step: StepInput) -> tuple[Tensor, PagedAttention]:
        """Positions [T] int64 of the step's tokens, and the attention that knows where they go."""
        block_size = self._limits.block_size
        num_tokens = np.asarray(step.num_tokens, dtype=np.int64)
        num_computed = np.asarray(step.num_computed, dtype=np.int64)
        first_tokens = np.cumsum(num_tokens) - num_tokens
        positions = np.arange(len(step.token_ids)) + np.repeat(num_computed - first_tokens, num_tokens)
        slot_rows = np.repeat(np.asarray(step.slot_rows, dtype=np.int64), num_tokens)
        slots = self._block_tables[slot_rows, positions // block_size] * block_size + positions % block_size
        spans: list[SequenceSpan] = []
        scattered: list[IntArray] = []
        num_gathered = 0
        for index, slot_row in enumerate(step.slot_rows):
            first, count, computed = int(first_tokens[index]), step.num_tokens[index], step.num_computed[index]
            if computed == 0:
                spans.append(SequenceSpan(first, count, computed))
                continue
            blocks = self._block_tables[slot_row, : -(-(computed + count) // block_size)]
            if self._is_run(slot_row, len(blocks)):
                spans.append(SequenceSpan(first, count, computed, first_slot=int(blocks[0]) * block_size))
                continue
            spans.append(SequenceSpan(first, count, computed, first_gathered=num_gathered))
            scattered.append(blocks)
            num_gathered += len(blocks) * block_size
        attention = PagedAttention(
            self._cache,
            self._stage.shard.first_layer,
            self._to_device(slots),
            self._to_device(np.concatenate(scattered)) if scattered else None,
            spans,
        )
        return self._to_device(positions), attention

    def _extend_run(self, slot_row: int) -> None:
        table, count = self._block_tables[slot_row], self._num_run_blocks[slot_row]
        first = int(table[0])
        while count < self._num_held_blocks[slot_row] and table[count] == first + count:
            count += 1
        self._num_run_blocks[slot_row] = count

    def _is_run(self, slot_row: int, num_blocks: int) -> bool:
        """Whether so many blocks of a sequence lie one after the other in the cache."""
        return num_blocks <= self._num_run_blocks[slot_row]

    def _to_device(self, array: IntArray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _draw(self, step: StepInput, inputs: Tensor, positions: Tensor, attention: PagedAttention) -> StepOutput | None:
        """Logits of the rows that need them: first those to draw from, then those of prompt log-probabilities."""
        ends = np.cumsum(np.asarray(step.num_tokens, dtype=np.int64))
        draw_rows = [int(ends[index]) - 1 for index, is_drawn in enumerate(step.samples) if is_drawn]
        logit_rows = list(draw_rows)
        for index, targets in step.prompt_targets.items():
            first = int(ends[index]) - step.num_tokens[index] + targets.offset
            logit_rows.extend(range(first, first + len(targets.token_ids)))
        rows = torch.tensor(logit_rows, dtype=torch.int64).to(self._device, non_blocking=True)
        logits = self._stage.forward(inputs, positions, attention, rows)  # [N, V]
        if self._sampler is None:
            return None
        drawn_slot_rows = [
            slot_row for slot_row, is_drawn in zip(step.slot_rows, step.samples, strict=True) if is_drawn
        ]
        prompts = _prompt_logprobs(step, logits[len(draw_rows) :])
        if not drawn_slot_rows:
            return StepOutput(step.step_id, [], None, prompts)
        drawn = self._sampler.sample(logits[: len(draw_rows)], drawn_slot_rows)
        return StepOutput(step.step_id, drawn.token_ids, drawn.logprobs, prompts)


def _prompt_logprobs(step: StepInput, logits: Tensor) -> dict[int, list[TokenLogprobs]]:
    """Log-probabilities of each sequence's prompt targets; logits [N, V] of all of them, one after the other."""
    found: dict[int, list[TokenLogprobs]] = {}
    position = 0
    for index, targets in step.prompt_targets.items():
        count = len(targets.token_ids)
        found[index] = prompt_logprobs(logits[position : position + count], targets.token_ids, targets.num_top)
        position += count
    return found
