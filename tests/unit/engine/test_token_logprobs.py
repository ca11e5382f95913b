"""Log-probabilities of tokens against log_softmax."""

import pytest
import torch
from torch import Tensor

from serve_app.engine.token_logprobs import followed_logprobs
from serve_app.types.generation import TokenLogprobs

VOCAB = 40


def entries_of(logits: Tensor, targets: list[int], num_top: int) -> list[TokenLogprobs]:
    columns = followed_logprobs(logits, torch.tensor(targets, dtype=torch.int64), num_top)
    return [entry for one in columns for entry in one.to_host().to_lists([num_top] * len(one.tokens))]


def test_pieces_equal_log_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.engine.token_logprobs._CHUNK_ELEMENTS", 3 * VOCAB)
    logits = (torch.randn(10, VOCAB, generator=torch.Generator().manual_seed(0)) * 2).bfloat16()
    targets = [(7 * n) % VOCAB for n in range(10)]
    reference = logits.float().log_softmax(-1)
    entries = entries_of(logits, targets, num_top=2)
    assert [entry.token_id for entry in entries] == targets
    for n, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(float(reference[n, targets[n]]), abs=1e-5)
        assert entry.top_logprobs == pytest.approx(reference[n].topk(2).values.tolist(), abs=1e-5)
    assert entries_of(logits[:0], [], num_top=2) == []
    assert len(entries_of(logits[:1], [0], num_top=VOCAB + 5)[0].top_token_ids) == VOCAB


def test_equal_logits_rank_by_id() -> None:
    (entry,) = entries_of(torch.zeros(1, VOCAB), [3], num_top=3)
    assert (entry.rank, entry.top_token_ids) == (4, [0, 1, 2])
