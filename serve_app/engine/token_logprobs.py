"""Log-probabilities of tokens, among all that might have stood in their place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from serve_app.engine.draws import ranked_ids
from serve_app.types.generation import TokenLogprobs

_CHUNK_ELEMENTS = 1 << 24  # 64 MiB in float32


@dataclass(frozen=True, slots=True)
class LogprobColumns:
    """Log-probabilities of B tokens and of n alternatives to each, as tensors."""

    tokens: Tensor  # [B] int64
    logprobs: Tensor  # [B] float32
    ranks: Tensor  # [B] int64
    top_ids: Tensor  # [B, n] int64
    top_logprobs: Tensor  # [B, n] float32

    def to_host(self) -> "LogprobColumns":
        """The same on its way to the host, which does not wait for it."""
        return LogprobColumns(*(getattr(self, one.name).to("cpu", non_blocking=True) for one in fields(self)))

    def to_lists(self, num_tops: Sequence[int]) -> Iterator[TokenLogprobs]:
        """One entry for each token, with so many of its alternatives."""
        columns = (self.tokens, self.logprobs, self.ranks, self.top_ids, self.top_logprobs)
        lists = (column.tolist() for column in columns)
        for num_top, token, logprob, rank, ids, values in zip(num_tops, *lists, strict=True):
            yield TokenLogprobs(token, logprob, rank, ids[:num_top], values[:num_top])


def token_logprobs(
    logits: Tensor, tokens: Tensor, num_top: int, compared: Sequence[tuple[int, Tensor]] = ()
) -> LogprobColumns:
    """logits [B, V] float32, tokens [B] int64. Equal logits rank by id, as they are drawn.

    compared: rows, and alternatives [k] int64 that stand there in place of the top ones; k <= num_top, all different.
    """
    ids = torch.arange(logits.shape[1], device=logits.device)
    chosen = logits.gather(1, tokens[:, None])  # [B, 1]
    is_before = (logits > chosen) | ((logits == chosen) & (ids < tokens[:, None]))
    norms = logits.logsumexp(dim=-1, keepdim=True)
    distances = (logits.amax(dim=-1, keepdim=True) - logits).contiguous()
    top_ids = ranked_ids(distances, min(num_top, logits.shape[1]))
    for row, named in compared:
        top_ids[row, : len(named)] = named
    return LogprobColumns(
        tokens=tokens,
        logprobs=(chosen - norms).squeeze(1),
        ranks=is_before.sum(dim=-1) + 1,
        top_ids=top_ids,
        top_logprobs=logits.gather(1, top_ids) - norms,
    )


def followed_logprobs(logits: Tensor, followed_by: Tensor, num_top: int) -> list[LogprobColumns]:
    """Log-probabilities of the tokens that followed, in pieces.

    logits [N, V] float32 or bfloat16, followed_by [N] int64.
    """
    step = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    parts = [slice(first, first + step) for first in range(0, len(followed_by), step)]
    return [token_logprobs(logits[part].float(), followed_by[part], num_top) for part in parts]
