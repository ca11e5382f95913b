"""Draws the next token of every sequence of a step; runs on the last pipeline stage.

What tokens are drawn by lies on the device (sampler_tables.py). A step whose batch is that of an earlier one, with no
newcomer in it, sends nothing there, and the host waits for nothing: only where a sequence has top_p without top_k, once
(draws.py), and when the tokens are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.engine.draws import draw_rows, uniforms
from serve_app.engine.grammars import Grammars
from serve_app.engine.host_staging import HostStaging
from serve_app.engine.sampled_batch import DrawnRows, PenalizedRows, RowWays, SampledBatch, lay_out
from serve_app.engine.sampler_tables import SamplerTables
from serve_app.engine.token_logprobs import LogprobColumns, token_logprobs
from serve_app.models.compiled.library import CompiledKernels
from serve_app.types.generation import TokenLogprobs
from serve_app.types.steps import NOT_FINITE, SequenceStart

_MAX_BATCHES = 16  # laid out and kept: those of a pipeline's steps take turns


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What a step drew, in the order of its sequences."""

    token_ids: list[int]  # or NOT_FINITE, NOTHING_FITS, NO_MATCHER
    logprobs: list[TokenLogprobs | None] | None = None  # beside token_ids, when any sequence asks


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """The same as tensors."""

    slot_rows: Tensor  # [B] int64, on the device
    token_ids: Tensor  # [B] int64
    logprobs: LogprobColumns | None  # of the sequences that ask
    num_tops: list[int | None]  # [B] alternatives that they ask for, where any does

    def to_host(self) -> "DrawnTokens":
        """The same with its tokens on their way to the host, which does not wait for them."""
        if self.token_ids.device.type == "cpu":
            return self
        logprobs = None if self.logprobs is None else self.logprobs.to_host()
        return replace(self, token_ids=self.token_ids.to("cpu", non_blocking=True), logprobs=logprobs)

    def read(self) -> SampledTokens:
        """As lists."""
        token_ids: list[int] = self.token_ids.tolist()
        if self.logprobs is None:
            return SampledTokens(token_ids)
        by_row = self.logprobs.to_lists([num_top for num_top in self.num_tops if num_top is not None])
        listed = [None if num_top is None else next(by_row) for num_top in self.num_tops]
        pairs = zip(token_ids, listed, strict=True)
        return SampledTokens(token_ids, [entry if token >= 0 else None for token, entry in pairs])


class Sampler:
    """Sampling state of the sequences that hold a slot row.

    A draw depends only on the sequence's logits, parameters and (seed, choice, number of outputs): not on batch-mates,
    nor on a restart in between.
    """

    def __init__(
        self,
        max_num_seqs: int,
        vocab_size: int,
        device: torch.device | str,
        staging: HostStaging | None = None,
        grammars: Grammars | None = None,
        kernels: CompiledKernels | None = None,
    ) -> None:
        """staging: takes arrays to the device; None: one of its own. grammars: None where no sequence has one.

        kernels: compiled ones on CPU, if any.
        """
        self._vocab_size = vocab_size
        self._staging = staging or HostStaging(torch.device(device))
        self._tables = SamplerTables(max_num_seqs, vocab_size, torch.device(device), self._staging)
        self._grammars = grammars
        self._kernels = kernels
        self._ways: dict[int, RowWays] = {}  # by slot row
        self._batches: dict[tuple[int, ...], SampledBatch] = {}  # by slot rows

    def start(self, start: SequenceStart) -> None:
        """Give `start.slot_row` to a sequence; what it held before is forgotten."""
        params = start.params
        num_unended = max(0, params.min_tokens - start.num_outputs) if start.end_token_ids else 0
        if params.grammar is not None:
            num_unended = 0  # it is the grammar's: where only the end is left, it comes
        if self._grammars is not None:
            self._grammars.start(start)
        self._ways[start.slot_row] = RowWays.of(params, num_unended, self._vocab_size)
        self._tables.start(start)
        self._forget_batches(start.slot_row)

    def sample(self, logits: Tensor, slot_rows: Sequence[int]) -> SampledTokens:
        """Draw one token for each of `slot_rows`, and wait for them; see `draw`."""
        return self.draw(logits, slot_rows).read()

    @torch.inference_mode()
    def draw(self, logits: Tensor, slot_rows: Sequence[int]) -> DrawnTokens:
        """Draw one token for each of `slot_rows`, all different and started.

        logits [B, V] float32 or bfloat16; left as they are.
        """
        batch = self._batch_of(slot_rows)
        if self._kernels is not None and batch.is_greedy and self._kernels.serve(logits.dtype):
            tokens = self._kernels.finite_largest(logits, NOT_FINITE)
        else:
            tokens = self._drawn(logits, batch)
        self._count(batch, tokens)
        return DrawnTokens(batch.slot_rows, tokens, self._logprobs(logits, batch, tokens), batch.num_tops)

    def _drawn(self, logits: Tensor, batch: SampledBatch) -> Tensor:
        """[B] int64, or NOT_FINITE, NOTHING_FITS, NO_MATCHER."""
        scores = self._adjusted(logits, batch) if batch.changes_logits else logits
        best, tokens = scores.max(dim=-1)  # the lowest id of equals
        is_finite = best.isfinite()  # NaN and +inf win the maximum, so it tells for the whole row
        if scores is not logits:
            is_finite &= logits.amax(dim=-1).isfinite()
        for drawn in batch.drawn:
            tokens[drawn.index] = draw_rows(scores, best, drawn.index, self._next_controls(drawn), drawn.max_ranked)
        tokens = torch.where(is_finite, tokens, NOT_FINITE)
        if batch.held is not None and self._grammars is not None:
            tokens = self._grammars.take(batch.held, tokens)
        return tokens

    def _batch_of(self, slot_rows: Sequence[int]) -> SampledBatch:
        key = tuple(slot_rows)
        batch = self._batches.get(key)
        if batch is None:
            self._tables.write()
            ways = [self._ways[slot_row] for slot_row in key]
            batch = lay_out(key, ways, self._tables, self._staging, self._vocab_size)
            if len(self._batches) == _MAX_BATCHES:
                del self._batches[next(iter(self._batches))]
            self._batches[key] = batch
        return batch

    def _forget_batches(self, slot_row: int) -> None:
        """Lay the batches out anew that a row is in."""
        self._batches = {key: batch for key, batch in self._batches.items() if slot_row not in key}

    def _adjusted(self, logits: Tensor, batch: SampledBatch) -> Tensor:
        """Logits [B, V] float32 after bias, min_tokens, allowed tokens, penalties and grammars."""
        scores = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if batch.changed is not None:
            batch.changed.apply(scores)
        if batch.penalized is not None:
            rows = batch.penalized
            scores[rows.index] = _penalized(scores[rows.index], self._tables.histories(rows.slot_rows), rows)
        if batch.held is not None and self._grammars is not None:
            allowed = self._grammars.allowed(batch.held.slot_rows)
            if len(allowed) == len(scores):
                return scores.masked_fill_(~allowed, -torch.inf)
            scores[batch.held.index] = scores[batch.held.index].masked_fill_(~allowed, -torch.inf)
        return scores

    def _next_controls(self, drawn: DrawnRows) -> Tensor:
        """Temperature, min_p, top_p, top_k and a fresh uniform number of each row: [n, 5] float64."""
        numbers = uniforms(drawn.stream_keys, self._tables.next_positions(drawn.slot_rows))
        return torch.cat((drawn.controls, numbers[:, None]), dim=1)

    def _count(self, batch: SampledBatch, tokens: Tensor) -> None:
        for slot_row in batch.unended:
            self._ways[slot_row].num_unended -= 1
            if self._ways[slot_row].num_unended == 0:
                self._forget_batches(slot_row)
        if batch.penalized is not None:
            self._tables.count(batch.penalized.slot_rows, tokens[batch.penalized.index])

    def _logprobs(self, logits: Tensor, batch: SampledBatch, tokens: Tensor) -> LogprobColumns | None:
        if batch.asking is None:
            return None
        num_top = max(num_top for num_top in batch.num_tops if num_top is not None)
        asked = tokens[batch.asking].clamp(min=0)
        return token_logprobs(logits[batch.asking].float(), asked, num_top, batch.compared)


def _penalized(scores: Tensor, histories: tuple[Tensor, Tensor], rows: PenalizedRows) -> Tensor:
    """Repetition penalty of CTRL (arXiv:1909.05858, section 4.1), then OpenAI's presence and frequency penalties.

    scores [B, V] float32, histories: see SamplerTables -> [B, V] float32.
    """
    in_prompt, output_counts = histories
    repetition, presence, frequency = rows.penalties[:, :, None].unbind(1)  # [B, 1] each
    is_output = output_counts > 0
    repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
    scores = torch.where(in_prompt | is_output, repeated, scores)
    return scores - presence * is_output - frequency * output_counts
