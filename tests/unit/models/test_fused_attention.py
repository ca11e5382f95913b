"""When key-value heads are repeated: on a device that is not here, so by what is asked of a tensor alone."""

from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor

from serve_app.models.fused_attention import must_repeat_heads


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a query's tensor, on a device that is not here."""

    is_cuda: bool
    dtype: torch.dtype


@pytest.mark.parametrize(
    ("query", "num_kv_heads", "has_mask", "is_repeated"),
    [
        (Query(True, torch.bfloat16), 2, False, False),  # flash takes heads that share theirs, and the lower right
        (Query(True, torch.bfloat16), 2, True, True),  # a window is a mask
        (Query(True, torch.float32), 2, False, True),  # the memory-efficient kernel is left
        (Query(True, torch.float32), 8, True, False),
        (Query(False, torch.float32), 2, True, False),  # the CPU's takes both
    ],
)
def test_heads_are_repeated_where_no_fused_kernel_for_cuda_takes_them(
    query: Query, num_kv_heads: int, has_mask: bool, is_repeated: bool
) -> None:
    assert must_repeat_heads(cast(Tensor, query), 8, num_kv_heads, has_mask=has_mask) == is_repeated
