"""Draws the next token of every sequence of a step; runs on the last pipeline stage.

Parameters stay on the host and travel with the step; only penalty counts are kept on the device. The host waits for the
device when the drawn tokens become lists, and once before where a sequence has top_p without top_k.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.engine.draws import NUM_CANDIDATES, draw_rows, ranked_ids, stream_key, uniforms
from serve_app.types.generation import TokenLogprobs
from serve_app.types.steps import SequenceStart

_GREEDY_BELOW = 1e-5  # temperature; weights of any other token underflow anyway
_PROMPT_CHUNK_ELEMENTS = 1 << 24  # 64 MiB in float32


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What a step drew, in the order of its sequences."""

    token_ids: list[int]  # -1: the logits were not finite
    logprobs: list[TokenLogprobs | None] | None = None  # beside token_ids, when any sequence asks


class Sampler:
    """Sampling state of the sequences that hold a slot row.

    A draw depends only on the sequence's logits, parameters and (seed, choice, number of outputs): not on batch-mates,
    nor on a restart in between.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device | str) -> None:
        self._shape = (max_num_seqs, vocab_size)
        self._device = torch.device(device)
        self._controls = torch.zeros(max_num_seqs, 4, dtype=torch.float64)  # temperature, min_p, top_p, top_k
        self._penalties = torch.zeros(max_num_seqs, 3)  # repetition, presence, frequency
        self._stream_keys = torch.zeros(max_num_seqs, dtype=torch.int64)
        self._num_outputs = torch.zeros(max_num_seqs, dtype=torch.int64)  # kept where tokens are drawn at random
        self._plain: dict[int, int] = {}  # slot rows that draw by temperature, min_p -> 0
        self._ranked: dict[int, int] = {}  # slot rows that draw by top_k, top_p as well -> tokens to rank, at most
        self._long_ranked: dict[int, int] = {}  # the same with top_k > NUM_CANDIDATES: apart, as they cost more
        self._penalized: set[int] = set()
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}  # ids [n] int64, values [n] float32
        self._allowed: dict[int, Tensor] = {}  # ids [n] int64, where others are not
        self._unended: dict[int, _Unended] = {}  # slot rows below min_tokens
        self._num_logprobs: dict[int, int] = {}
        self._in_prompt: Tensor | None = None  # [max_num_seqs, V] bool
        self._output_counts: Tensor | None = None  # [max_num_seqs, V] int32

    def start(self, start: SequenceStart) -> None:
        """Give `start.slot_row` to a sequence; what it held before is forgotten."""
        slot_row, params = start.slot_row, start.params
        for ranked in (self._plain, self._ranked, self._long_ranked):
            ranked.pop(slot_row, None)
        for states in (self._biases, self._allowed, self._unended, self._num_logprobs):
            states.pop(slot_row, None)
        self._penalized.discard(slot_row)
        if params.temperature >= _GREEDY_BELOW:
            self._start_random(start)
        if params.has_penalties:
            self._start_penalties(start)
        if params.logit_bias:
            values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
            self._biases[slot_row] = self._upload(torch.tensor(list(params.logit_bias))), self._upload(values)
        if params.allowed_token_ids:
            self._allowed[slot_row] = self._upload(torch.tensor(params.allowed_token_ids))
        if start.num_outputs < params.min_tokens and start.end_token_ids:
            end_ids = self._upload(torch.tensor(start.end_token_ids))
            self._unended[slot_row] = _Unended(end_ids, params.min_tokens - start.num_outputs)
        if params.num_logprobs is not None:
            self._num_logprobs[slot_row] = params.num_logprobs

    @torch.inference_mode()
    def sample(self, logits: Tensor, slot_rows: list[int]) -> SampledTokens:
        """Draw one token for each of `slot_rows`, all different and started.

        logits [B, V] float32 or bfloat16; left as they are.
        """
        scores = self._adjusted(logits, slot_rows)
        best, tokens = scores.max(dim=-1)  # the lowest id of equals
        is_finite = best.isfinite()  # NaN and +inf win the maximum, so it tells for the whole row
        if scores is not logits:
            is_finite &= logits.amax(dim=-1).isfinite()
        self._draw(scores, best, slot_rows, tokens)  # in place
        tokens = torch.where(is_finite, tokens, -1)
        self._count(slot_rows, tokens)
        logprobs = self._logprobs(logits, slot_rows, tokens)
        token_ids: list[int] = tokens.tolist()
        if logprobs is None:
            return SampledTokens(token_ids)
        by_row = logprobs.to_lists(
            [self._num_logprobs[slot_row] for slot_row in slot_rows if slot_row in self._num_logprobs]
        )
        listed = (next(by_row) if slot_row in self._num_logprobs else None for slot_row in slot_rows)
        pairs = zip(token_ids, listed, strict=True)
        return SampledTokens(token_ids, [entry if token >= 0 else None for token, entry in pairs])

    def _start_random(self, start: SequenceStart) -> None:
        slot_row, params = start.slot_row, start.params
        top_k = params.top_k if 0 < params.top_k < self._shape[1] else self._shape[1]
        self._controls[slot_row] = torch.tensor(
            [params.temperature, params.min_p, params.top_p, top_k], dtype=torch.float64
        )
        self._stream_keys[slot_row] = stream_key(params.seed, start.choice)
        self._num_outputs[slot_row] = start.num_outputs
        if NUM_CANDIDATES < top_k < self._shape[1]:
            self._long_ranked[slot_row] = top_k
        elif params.top_p < 1.0 or top_k < self._shape[1]:
            self._ranked[slot_row] = top_k
        else:
            self._plain[slot_row] = 0

    def _start_penalties(self, start: SequenceStart) -> None:
        slot_row, params = start.slot_row, start.params
        if self._in_prompt is None or self._output_counts is None:
            self._in_prompt = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._output_counts = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        history = torch.tensor(start.history_token_ids, dtype=torch.int64)
        counts = [
            part.bincount(minlength=self._shape[1]) for part in history.tensor_split([start.num_history_prompt_tokens])
        ]
        self._in_prompt[slot_row] = self._upload(counts[0] > 0)
        self._output_counts[slot_row] = self._upload(counts[1].int())
        self._penalties[slot_row] = torch.tensor(
            [params.repetition_penalty, params.presence_penalty, params.frequency_penalty]
        )
        self._penalized.add(slot_row)

    def _adjusted(self, logits: Tensor, slot_rows: list[int]) -> Tensor:
        """Logits [B, V] after bias, min_tokens, allowed tokens and penalties; `logits` itself when none has any."""
        groups = (self._biases.keys(), self._unended.keys(), self._allowed.keys(), self._penalized)
        if all(group.isdisjoint(slot_rows) for group in groups):
            return logits
        scores = logits.to(torch.float32, copy=True)
        for b, slot_row in enumerate(slot_rows):
            if slot_row in self._biases:
                ids, values = self._biases[slot_row]
                scores[b].index_add_(0, ids, values)
            if slot_row in self._unended:
                scores[b].index_fill_(0, self._unended[slot_row].end_ids, -torch.inf)
            if slot_row in self._allowed:
                ids = self._allowed[slot_row]
                scores[b] = torch.full_like(scores[b], -torch.inf).index_copy_(0, ids, scores[b][ids])
        penalized = [b for b, slot_row in enumerate(slot_rows) if slot_row in self._penalized]
        if penalized:
            assert self._in_prompt is not None
            assert self._output_counts is not None
            host_slot_rows = torch.tensor([slot_rows[b] for b in penalized])
            index, device_slot_rows = self._upload(torch.tensor(penalized)), self._upload(host_slot_rows)
            scores[index] = _penalized(
                scores[index],
                self._in_prompt[device_slot_rows],
                self._output_counts[device_slot_rows],
                self._upload(self._penalties[host_slot_rows]),
            )
        return scores

    def _draw(self, scores: Tensor, best: Tensor, slot_rows: list[int], tokens: Tensor) -> None:
        """Replace the greedy choice in `tokens` [B] int64 by a draw where a sequence asks for one."""
        for group in (self._plain, self._ranked, self._long_ranked):
            drawn = [b for b, slot_row in enumerate(slot_rows) if slot_row in group]
            if drawn:
                index = self._upload(torch.tensor(drawn))
                controls = self._next_controls([slot_rows[b] for b in drawn])
                max_ranked = max(group[slot_rows[b]] for b in drawn)
                tokens[index] = draw_rows(scores, best, index, controls, max_ranked)

    def _next_controls(self, slot_rows: list[int]) -> Tensor:
        """Temperature, min_p, top_p, top_k and a fresh uniform number of each sequence: [B, 5] float64."""
        host_slot_rows = torch.tensor(slot_rows)
        positions = self._num_outputs[host_slot_rows]
        self._num_outputs[host_slot_rows] = positions + 1
        drawn = uniforms(self._stream_keys[host_slot_rows], positions)
        return self._upload(torch.cat((self._controls[host_slot_rows], drawn[:, None]), dim=1))

    def _count(self, slot_rows: list[int], tokens: Tensor) -> None:
        for slot_row in self._unended.keys() & slot_rows:
            self._unended[slot_row].num_tokens -= 1
            if self._unended[slot_row].num_tokens == 0:
                del self._unended[slot_row]
        penalized = (
            [b for b, slot_row in enumerate(slot_rows) if slot_row in self._penalized] if self._penalized else []
        )
        if penalized:
            assert self._output_counts is not None
            drawn = tokens[self._upload(torch.tensor(penalized))]
            device_slot_rows = self._upload(torch.tensor([slot_rows[b] for b in penalized]))
            self._output_counts[device_slot_rows, drawn.clamp(min=0)] += (drawn >= 0).int()

    def _logprobs(self, logits: Tensor, slot_rows: list[int], tokens: Tensor) -> "_Logprobs | None":
        asking = (
            [b for b, slot_row in enumerate(slot_rows) if slot_row in self._num_logprobs] if self._num_logprobs else []
        )
        if not asking:
            return None
        index = self._upload(torch.tensor(asking))
        num_top = max(self._num_logprobs[slot_rows[b]] for b in asking)
        return _token_logprobs(logits[index].float(), tokens[index].clamp(min=0), num_top)

    def _upload(self, host: Tensor) -> Tensor:
        return host.to(self._device, non_blocking=True)  # pageable memory is staged before this returns


def prompt_logprobs(logits: Tensor, targets: list[int], num_top: int) -> list[TokenLogprobs]:
    """Log-probabilities of the tokens that followed.

    logits [N, V] float32 or bfloat16, targets [N].
    """
    chosen = torch.tensor(targets).to(logits.device, non_blocking=True)
    step = max(1, _PROMPT_CHUNK_ELEMENTS // logits.shape[1])
    entries: list[TokenLogprobs] = []
    for first in range(0, len(targets), step):
        part = slice(first, first + step)
        logprobs = _token_logprobs(logits[part].float(), chosen[part], num_top)
        entries += logprobs.to_lists([num_top] * len(targets[part]))
    return entries


@dataclass(slots=True)
class _Unended:
    end_ids: Tensor  # [n] int64
    num_tokens: int  # to draw before one of them may be drawn


@dataclass(frozen=True, slots=True)
class _Logprobs:
    tokens: Tensor  # [B] int64
    logprobs: Tensor  # [B] float32
    ranks: Tensor  # [B] int64
    top_ids: Tensor  # [B, n] int64
    top_logprobs: Tensor  # [B, n] float32

    def to_lists(self, num_tops: list[int]) -> Iterator[TokenLogprobs]:
        columns = (self.tokens, self.logprobs, self.ranks, self.top_ids, self.top_logprobs)
        lists = (column.tolist() for column in columns)
        for num_top, token, logprob, rank, ids, values in zip(num_tops, *lists, strict=True):
            yield TokenLogprobs(token, logprob, rank, ids[:num_top], values[:num_top])


def _token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> _Logprobs:
    """logits [B, V] float32, tokens [B] int64. Equal logits rank by id, as they are drawn."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    chosen = logits.gather(1, tokens[:, None])  # [B, 1]
    is_before = (logits > chosen) | ((logits == chosen) & (ids < tokens[:, None]))
    norms = logits.logsumexp(dim=-1, keepdim=True)
    distances = (logits.amax(dim=-1, keepdim=True) - logits).contiguous()
    top_ids = ranked_ids(distances, min(num_top, logits.shape[1]))
    return _Logprobs(
        tokens=tokens,
        logprobs=(chosen - norms).squeeze(1),
        ranks=is_before.sum(dim=-1) + 1,
        top_ids=top_ids,
        top_logprobs=logits.gather(1, top_ids) - norms,
    )


def _penalized(scores: Tensor, in_prompt: Tensor, output_counts: Tensor, penalties: Tensor) -> Tensor:
    """Repetition penalty of CTRL (arXiv:1909.05858, section 4.1), then OpenAI's presence and frequency penalties.

    scores [B, V] float32, in_prompt [B, V] bool, output_counts [B, V] int32, penalties [B, 3] -> [B, V] float32.
    """
    repetition, presence, frequency = penalties[:, :, None].unbind(1)  # [B, 1] each
    is_output = output_counts > 0
    repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
    scores = torch.where(in_prompt | is_output, repeated, scores)
    return scores - presence * is_output - frequency * output_counts
