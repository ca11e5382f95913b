"""Decoding by torch's own paged kernel. Imported where torch has it."""

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from serve_app.engine.attention.backend import DecodeRows
from serve_app.engine.attention.padded import PaddedBackend
from serve_app.planning.attention_problem import VARLEN_PAGE_TOKENS


class VarlenBackend:
    """DecodeBackend of one launch a layer; layers that squeeze their scores, or have sinks, are padded instead.

    One split of the keys: only so are a sequence's numbers independent of its batch-mates, and right with pages.
    """

    is_graph_safe = True
    is_compiled = False

    def __init__(self, block_size: int, max_num_seqs: int, device: torch.device) -> None:
        self._pages_per_block = block_size // VARLEN_PAGE_TOKENS
        self._padded = PaddedBackend(block_size)
        self._query_ends = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._pages_of_block = torch.arange(self._pages_per_block, device=device)

    def decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        decoded: DecodeRows,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """See DecodeBackend."""
        if softcap is not None or sinks is not None:
            return self._padded.decode(query, keys, values, decoded, scaling, window, softcap, sinks)
        num_rows = len(query)
        pages = decoded.tables[..., None] * self._pages_per_block + self._pages_of_block  # [B, N, pages of a block]
        attended = varlen_attn(
            query.contiguous(),
            keys.view(-1, VARLEN_PAGE_TOKENS, *keys.shape[1:]),
            values.view(-1, VARLEN_PAGE_TOKENS, *values.shape[1:]),
            self._query_ends[: num_rows + 1],
            None,
            1,
            decoded.max_length,
            scale=scaling,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            enable_gqa=query.shape[1] != keys.shape[1],
            seqused_k=decoded.lengths.int(),
            block_table=pages.flatten(1).int(),
            num_splits=1,
        )
        assert isinstance(attended, Tensor)
        return attended
