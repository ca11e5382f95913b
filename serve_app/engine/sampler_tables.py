"""What tokens are drawn by: a row for each sequence that runs, on the device, written when a sequence starts.

What has a length of its own (biases, allowed tokens, tokens that end) is a tensor for each sequence that has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.block_tables import IntArray
from serve_app.engine.draws import stream_key
from serve_app.engine.host_staging import HostStaging
from serve_app.types.steps import SequenceStart

_NUM_CONTROLS = 4  # temperature, min_p, top_p, top_k
_NUM_NUMBERS = 7  # and repetition, presence and frequency penalty
_STREAM_KEY, _NUM_OUTPUTS = 7, 8
_NUM_WORDS = 9  # int64 of a row; the numbers among them are float64


class SamplerTables:
    """Sampling state on the device, by slot row."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device, staging: HostStaging) -> None:
        self._shape = (max_num_seqs, vocab_size)
        self._device = device
        self._staging = staging
        self._words = torch.zeros(max_num_seqs, _NUM_WORDS, dtype=torch.int64, device=device)
        self._numbers = self._words.view(torch.float64)  # the same memory
        self._num_outputs = self._words[:, _NUM_OUTPUTS]
        self._started: dict[int, SequenceStart] = {}  # by slot row, not written yet
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}  # ids [n] int64, values [n] float32
        self._allowed: dict[int, Tensor] = {}  # ids [n] int64, where others are not
        self._compared: dict[int, Tensor] = {}  # ids [n] int64
        self._end_ids: dict[int, Tensor] = {}  # ids [n] int64
        self._in_prompt: Tensor | None = None  # [max_num_seqs, V] bool
        self._output_counts: Tensor | None = None  # [max_num_seqs, V] int32

    def start(self, start: SequenceStart) -> None:
        """Give `start.slot_row` to a sequence, when the tables are written next."""
        self._started[start.slot_row] = start

    def write(self) -> None:
        """Bring the device up to date: one copy, whatever has started."""
        if not self._started:
            return
        starts = list(self._started.values())
        lists = [_Lists.of(start) for start in starts]
        slot_rows, words, *parts = self._staging.upload(
            [
                np.asarray([start.slot_row for start in starts], dtype=np.int64),
                _words(starts, self._shape[1]),
                *(array for one in lists for array in one.arrays),
            ]
        )
        self._words.index_copy_(0, slot_rows, words)
        for one in lists:
            self._write_lists(one, parts[: len(one.arrays)])
            parts = parts[len(one.arrays) :]
        self._started = {}  # only now: where there was no memory for it, the next step tries again

    def controls(self, slot_rows: Tensor) -> Tensor:
        """Temperature, min_p, top_p and top_k of rows [n] int64: [n, 4] float64."""
        return self._numbers[slot_rows, :_NUM_CONTROLS]

    def penalties(self, slot_rows: Tensor) -> Tensor:
        """Repetition, presence and frequency penalty of rows [n] int64: [n, 3] float32."""
        return self._numbers[slot_rows, _NUM_CONTROLS:_NUM_NUMBERS].float()

    def stream_keys(self, slot_rows: Tensor) -> Tensor:
        """Streams of random numbers of rows [n] int64: [n] int64."""
        return self._words[slot_rows, _STREAM_KEY]

    def next_positions(self, slot_rows: Tensor) -> Tensor:
        """Places in their streams of the numbers that rows [n] int64 draw by next, which are then used: [n] int64."""
        positions = self._num_outputs[slot_rows]
        self._num_outputs[slot_rows] = positions + 1
        return positions

    def histories(self, slot_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens the prompts of rows [n] int64 have [n, V] bool, and how often their outputs do [n, V] int32."""
        assert self._in_prompt is not None
        assert self._output_counts is not None
        return self._in_prompt[slot_rows], self._output_counts[slot_rows]

    def count(self, slot_rows: Tensor, tokens: Tensor) -> None:
        """Add tokens [n] int64 to the histories of rows [n] int64; those below 0 are none."""
        assert self._output_counts is not None
        self._output_counts[slot_rows, tokens.clamp(min=0)] += (tokens >= 0).int()

    def biases(self, slot_row: int) -> tuple[Tensor, Tensor]:
        """Tokens [n] int64 of a row that has biases, and what is added to their logits [n] float32."""
        return self._biases[slot_row]

    def allowed(self, slot_row: int) -> Tensor:
        """The tokens [n] int64 that a row is held to."""
        return self._allowed[slot_row]

    def compared(self, slot_row: int) -> Tensor:
        """The tokens [n] int64 whose log-probabilities a row asks for by name."""
        return self._compared[slot_row]

    def end_ids(self, slot_row: int) -> Tensor:
        """The tokens [n] int64 that end a row's sequence."""
        return self._end_ids[slot_row]

    def _write_lists(self, lists: "_Lists", parts: Sequence[Tensor]) -> None:
        start, uploaded = lists.start, iter(parts)
        slot_row, params = start.slot_row, start.params
        if params.has_penalties:
            self._write_history(slot_row, next(uploaded), next(uploaded))
        if params.logit_bias:
            self._biases[slot_row] = next(uploaded), next(uploaded).view(torch.float64).float()
        if params.allowed_token_ids:
            self._allowed[slot_row] = next(uploaded)
        if params.logprob_token_ids:
            self._compared[slot_row] = next(uploaded)
        if params.min_tokens:
            self._end_ids[slot_row] = next(uploaded)

    def _write_history(self, slot_row: int, prompt_ids: Tensor, output_ids: Tensor) -> None:
        if self._in_prompt is None or self._output_counts is None:
            self._in_prompt = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._output_counts = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        self._in_prompt[slot_row].zero_().index_fill_(0, prompt_ids, value=True)
        ones = torch.ones(len(output_ids), dtype=torch.int32, device=self._device)
        self._output_counts[slot_row].zero_().index_add_(0, output_ids, ones)


@dataclass(frozen=True, slots=True)
class _Lists:
    """What has a length of its own, in the order in which `_write_lists` takes it."""

    start: SequenceStart
    arrays: list[IntArray]

    @classmethod
    def of(cls, start: SequenceStart) -> "_Lists":
        """Those of a sequence; most have none."""
        params = start.params
        lists: list[Sequence[int]] = []
        if params.has_penalties:
            split = start.num_history_prompt_tokens
            lists += [start.history_token_ids[:split], start.history_token_ids[split:]]
        arrays = [np.asarray(one, dtype=np.int64) for one in lists]
        if params.logit_bias:
            values = np.asarray(list(params.logit_bias.values()), dtype=np.float64)
            arrays += [np.asarray(list(params.logit_bias), dtype=np.int64), values.view(np.int64)]
        if params.allowed_token_ids:
            arrays.append(np.asarray(params.allowed_token_ids, dtype=np.int64))
        if params.logprob_token_ids:
            arrays.append(np.asarray(params.logprob_token_ids, dtype=np.int64))
        if params.min_tokens:
            arrays.append(np.asarray(start.end_token_ids, dtype=np.int64))
        return cls(start, arrays)


def _words(starts: Sequence[SequenceStart], vocab_size: int) -> IntArray:
    """Rows of sequences: [n, 9] int64."""
    words = np.empty((len(starts), _NUM_WORDS), dtype=np.int64)
    numbers = words.view(np.float64)
    for index, start in enumerate(starts):
        params = start.params
        numbers[index, :_NUM_NUMBERS] = (
            params.temperature,
            params.min_p,
            params.top_p,
            params.top_k if 0 < params.top_k < vocab_size else vocab_size,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        words[index, _STREAM_KEY] = stream_key(params.seed, start.choice)
        words[index, _NUM_OUTPUTS] = start.num_outputs
    return words
