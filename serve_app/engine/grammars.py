"""Holds sequences to their grammars: a matcher for each, beside the sampler, which says what tokens may come next.

A grammar is compiled in a thread before its sequences are in a step, and kept until the Router drops it. A sequence's
matcher takes the tokens that were drawn before a start, and afterwards what the sampler draws, when the next mask is
asked for: by then the device has begun the step after, so that waiting for the token holds nothing up. (Masks from an
Earley parser over a lexer of derivatives, walked along a trie of the vocabulary: llguidance.)
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher
from numpy.typing import NDArray
from torch import Tensor

from serve_app.engine.grammar_vocabulary import GrammarVocabulary
from serve_app.engine.host_staging import Event, HostStaging
from serve_app.observability import fault_text
from serve_app.preprocessing.grammar_limits import parser_limits
from serve_app.types.steps import NO_MATCHER, NOTHING_FITS, SequenceStart

logger = logging.getLogger(__name__)

_WORD_BITS = 64


@dataclass(frozen=True, slots=True)
class HeldRows:
    """Rows of a batch whose sequences are held to grammars."""

    index: Tensor  # [n] int64 in the batch
    slot_rows: list[int]


@dataclass(slots=True, eq=False)
class _Sequence:
    compiled: Future[LLMatcher]
    end_token_ids: list[int]
    num_unended: int  # tokens to come before one that ends it, as long as there are others
    outputs: list[int]  # not yet taken
    matcher: LLMatcher | None = None
    is_over: bool = False  # it has ended, and draws beyond its end are thrown away
    is_stuck: bool = False
    is_broken: bool = False  # stuck, for it has no matcher


class Grammars:
    """Matchers of the sequences that have grammars, by slot row. make_vocabulary is called in a thread, once.

    make_event: of the device, where the host does not wait for it.
    """

    def __init__(
        self,
        make_vocabulary: Callable[[], GrammarVocabulary],
        vocab_size: int,
        device: torch.device,
        make_event: Callable[[], Event] | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._make_event = make_event
        self._staging = HostStaging(device)
        self._threads = ThreadPoolExecutor(1, "rayshard-grammars")
        self._vocabulary: Future[GrammarVocabulary] = self._threads.submit(make_vocabulary)
        self._compiled: dict[str, Future[LLMatcher]] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._drawn: list[tuple[list[_Sequence], Tensor, Event | None]] = []  # not yet taken

    def prepare(self, text: str) -> Future[LLMatcher]:
        """Have a grammar compiled in the thread, in turn, and keep it."""
        compiled = self._compiled[text] = self._compile(text)
        return compiled

    def forget(self, text: str) -> None:
        """Keep a grammar no more; sequences that are held to it stay so."""
        self._compiled.pop(text, None)

    def forget_all(self) -> None:
        """Keep no grammar and no sequence: their epoch is over."""
        self._compiled, self._sequences, self._drawn = {}, {}, []

    def start(self, start: SequenceStart) -> None:
        """Give a slot row to a sequence; only one with a grammar is kept."""
        self._sequences.pop(start.slot_row, None)
        grammar = start.params.grammar
        if grammar is None:
            return
        compiled = self._compiled.get(grammar)  # not there: nobody has asked for it before, and the first mask waits
        self._sequences[start.slot_row] = _Sequence(
            self._compile(grammar) if compiled is None else compiled,
            start.end_token_ids,
            start.params.min_tokens - start.num_outputs,
            start.history_token_ids[start.num_history_prompt_tokens :],
        )

    def allowed(self, slot_rows: Sequence[int]) -> Tensor:
        """What may come next: [n, V] bool. Rows where nothing may, or anything, are all true."""
        self._settle()
        words = np.zeros((len(slot_rows), -(-self._vocab_size // _WORD_BITS)), dtype=np.int64)
        for slot_row, row in zip(slot_rows, words, strict=True):
            if not self._fill(self._sequences[slot_row], row):
                row.fill(-1)
        return unpack_bits(words, self._vocab_size, self._device, self._staging)

    def take(self, held: HeldRows, tokens: Tensor) -> Tensor:
        """Hand drawn tokens [B] int64 to the matchers; gives them with what stands for none where none fits."""
        sequences = [self._sequences[slot_row] for slot_row in held.slot_rows]
        for is_broken, in_place in ((False, NOTHING_FITS), (True, NO_MATCHER)):
            stuck = [b for b, one in enumerate(sequences) if one.is_stuck and one.is_broken == is_broken]
            if stuck:
                (places,) = self._staging.upload([np.asarray(stuck, dtype=np.int64)])
                tokens = tokens.index_fill(0, held.index[places], in_place)
        drawn = tokens[held.index].to("cpu", non_blocking=True)
        event = None if self._make_event is None else self._make_event()
        if event is not None:
            event.record()
        self._drawn.append((sequences, drawn, event))
        return tokens

    def _compile(self, grammar: str) -> Future[LLMatcher]:
        return self._threads.submit(self._make_matcher, grammar)

    def _make_matcher(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._vocabulary.result().tokens, grammar, log_level=0, limits=parser_limits())

    def _settle(self) -> None:
        """Take what was drawn since."""
        for sequences, drawn, event in self._drawn:
            if event is not None:
                event.synchronize()
            for sequence, token_id in zip(sequences, drawn.tolist(), strict=True):
                if token_id < 0:
                    sequence.is_over = True
                else:
                    sequence.outputs.append(token_id)
                    sequence.num_unended -= 1
        self._drawn = []

    def _fill(self, sequence: _Sequence, row: NDArray[np.int64]) -> bool:
        """Set the bits of what may come next; False where nothing may, or the sequence is over."""
        self._advance(sequence)
        if sequence.is_over or sequence.is_stuck or sequence.matcher is None:
            return False
        matcher = sequence.matcher
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, -(-self._vocab_size // 32) * 4)
        special = self._vocabulary.result().special_token_ids
        if matcher.is_accepting():
            _set_bits(row, [one for one in sequence.end_token_ids if one in special])
        if sequence.num_unended > 0:
            without_ends = row.copy()
            _clear_bits(without_ends, sequence.end_token_ids)
            if without_ends.any():
                row[:] = without_ends
        sequence.is_stuck = matcher.is_error() or not row.any()
        return not sequence.is_stuck

    def _advance(self, sequence: _Sequence) -> None:
        if sequence.matcher is None and not sequence.is_stuck:
            error = sequence.compiled.exception()
            if error is None:
                sequence.matcher = sequence.compiled.result().deep_copy()
            else:
                logger.error("no answer can be held to a grammar error=%s", fault_text(error))
            sequence.is_stuck = sequence.is_broken = error is not None
        for token_id in sequence.outputs:
            if sequence.matcher is None or sequence.is_over:
                break
            if token_id in sequence.end_token_ids:
                sequence.is_over = True
            elif not sequence.matcher.consume_token(token_id):
                sequence.is_stuck = True
                break
        sequence.outputs = []


def unpack_bits(words: NDArray[np.int64], num_bits: int, device: torch.device, staging: HostStaging) -> Tensor:
    """Bits of words [n, W] int64, the lowest first, on the device: [n, num_bits] bool."""
    if device.type == "cpu":
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=num_bits, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    (uploaded,) = staging.upload([words])
    return spread_bits(uploaded, num_bits)


def spread_bits(words: Tensor, num_bits: int) -> Tensor:
    """The same of a tensor, where it lies."""
    places = torch.arange(_WORD_BITS, device=words.device)
    return ((words[:, :, None] >> places) & 1).bool().flatten(1)[:, :num_bits]


def _set_bits(row: NDArray[np.int64], places: Sequence[int]) -> None:
    as_bytes = row.view(np.uint8)
    for place in places:
        as_bytes[place >> 3] |= 1 << (place & 7)


def _clear_bits(row: NDArray[np.int64], places: Sequence[int]) -> None:
    as_bytes = row.view(np.uint8)
    for place in places:
        as_bytes[place >> 3] &= ~(1 << (place & 7)) & 0xFF
