"""Causal attention of a step's packed tokens over the paged KV cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.engine.attention.backend import DecodeBackend, DecodeRows
from serve_app.engine.attention.reference import attend_last, attend_one
from serve_app.engine.kv_cache import KvCache
from serve_app.models.step_attention import PagedRows


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence's part of a step, and where its keys are: in the step, in a run of the cache, or scattered in it."""

    first_token: int  # among the step's tokens
    num_tokens: int
    num_computed: int  # tokens in the cache before the step
    first_slot: int = -1  # of a run in the cache that holds all its keys, which is read in place
    first_gathered: int = -1  # its first slot among the keys that are gathered

    @property
    def num_keys(self) -> int:
        """Tokens that the last query sees without a window."""
        return self.num_computed + self.num_tokens


@dataclass(frozen=True, slots=True)
class DecodePart:
    """The sequences of a step that one call of a backend decodes."""

    backend: DecodeBackend
    rows: DecodeRows
    tokens: Tensor | None  # [B] int64 among the step's tokens; None: they are all of them, in order


class PagedAttention:
    """Attention of one step: where its tokens are stored, and where each sequence's keys are read.

    Sequences of one token may be decoded together by a backend. The others go one at a time, so that each result is
    independent of its batch-mates.
    """

    def __init__(
        self,
        cache: KvCache,
        first_layer: int,
        slots: Tensor,
        scattered: Tensor | None,
        spans: list[SequenceSpan],
        decoded: DecodePart | None = None,
    ) -> None:
        self._cache = cache
        self._first_layer = first_layer
        self._slots = slots  # [T] int64
        self._scattered = scattered  # [N] int64: the blocks of all spans that are not read in place
        self._spans = spans
        self._decoded = decoded

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store the step's keys and values, then attend.

        query [H, T, Dh], key [K, T, Dh], value [K, T, Dv], sinks [H] -> [T, H, Dv].
        """
        layer = layer_index - self._first_layer
        fresh = key.transpose(0, 1), value.transpose(0, 1)  # [T, K, Dh]
        self._cache.write(layer, self._slots, *fresh)
        decoded = self._decoded
        if decoded is None:
            outputs = self._attend_spans(layer, query, fresh, scaling, sliding_window, softcap, sinks)
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        by_token = query.transpose(0, 1)  # [T, H, Dh]
        rows = by_token if decoded.tokens is None else by_token[decoded.tokens]
        pages = self._cache.keys[layer], self._cache.values[layer]
        last = decoded.backend.decode(rows, *pages, decoded.rows, scaling, sliding_window, softcap, sinks)
        if decoded.tokens is None:
            return last
        outputs = self._attend_spans(layer, query, fresh, scaling, sliding_window, softcap, sinks)
        attended = last.new_empty(query.shape[1], query.shape[0], value.shape[-1])
        attended[decoded.tokens] = last
        for span, output in zip(self._spans, outputs, strict=True):
            attended[span.first_token : span.first_token + span.num_tokens] = output
        return attended

    def compiled_rows(self) -> PagedRows | None:
        """See StageAttention."""
        decoded, cache = self._decoded, self._cache
        if decoded is None or decoded.tokens is not None or not decoded.backend.is_compiled:
            return None
        tables, lengths = decoded.rows.tables, decoded.rows.lengths
        return PagedRows(self._slots, tables, lengths, cache.keys, cache.values, cache.block_size, cache.memory)

    def _attend_spans(
        self,
        layer: int,
        query: Tensor,
        fresh: tuple[Tensor, Tensor],
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> list[Tensor]:
        """[q, H, Dv] of each span."""
        gathered = None if self._scattered is None else self._cache.read(layer, self._scattered)
        is_plain = softcap is None and sinks is None
        outputs = []
        for span in self._spans:
            first, end = span.first_token, span.first_token + span.num_tokens
            queries = query if span.num_tokens == query.shape[1] else query[:, first:end]
            if is_plain and span.num_tokens == 1 and span.first_slot >= 0:
                count = span.num_keys
                seen = count if sliding_window is None else min(count, sliding_window)
                run = self._cache.read_run(layer, span.first_slot + count - seen, seen)
                outputs.append(attend_last(queries, *run, scaling))
                continue
            keys, values = self._keys_of(span, layer, fresh, gathered)
            outputs.append(attend_one(queries, keys, values, scaling, sliding_window, softcap, sinks))
        return outputs

    def _keys_of(
        self, span: SequenceSpan, layer: int, fresh: tuple[Tensor, Tensor], gathered: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [L, K, Dh] of one sequence, without a copy."""
        if span.first_slot >= 0:
            keys, values = self._cache.read_run(layer, span.first_slot, span.num_keys)
            return keys[0].transpose(0, 1), values[0].transpose(0, 1)
        if span.first_gathered >= 0:
            assert gathered is not None
            (keys, values), first, count = gathered, span.first_gathered, span.num_keys
        else:
            (keys, values), first, count = fresh, span.first_token, span.num_tokens
        return keys[first : first + count], values[first : first + count]
