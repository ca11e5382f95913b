"""Decoding on CPU by a compiled kernel, which reads the paged cache in place."""

from torch import Tensor

from serve_app.engine.attention.backend import DecodeRows
from serve_app.models.compiled.library import AttentionSizes, CompiledKernels


class CompiledBackend:
    """DecodeBackend on CPU. Threads share sequences and key-value heads, so batch-mates change no bit."""

    is_graph_safe = False
    is_compiled = True

    def __init__(self, block_size: int, kernels: CompiledKernels) -> None:
        self._block_size = block_size
        self._kernels = kernels
        self._facts: tuple[float, ...] = ()  # what the sizes at hand were made of: most layers' are the last one's
        self._sizes = AttentionSizes()

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
        num_sequences, num_heads, head_dim = query.shape
        if query.stride(2) != 1 or query.stride(1) != head_dim:
            query = query.contiguous()
        facts = (
            *(num_sequences, num_heads, keys.shape[1], head_dim, values.shape[2], query.stride(0), self._block_size),
            *(decoded.tables.shape[1], window or 0, scaling, softcap or 0.0),
        )
        if facts != self._facts:
            self._facts, self._sizes = facts, AttentionSizes(*facts)
        sinks = None if sinks is None else sinks.to(query.dtype)
        return self._kernels.attend(self._sizes, query, keys, values, decoded.tables, decoded.lengths, sinks)
