"""A teacher that is served elsewhere, split over any number of devices: its most probable tokens, asked for once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_SMALLEST = 1e-9  # of the probability that is left for all other tokens


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """Of one sequence's tokens from the second on, before each of them."""

    ids: Tensor  # [T - 1, k] int64
    logprobs: Tensor  # [T - 1, k] float32, natural


@dataclass(frozen=True, slots=True)
class TopTeacher:
    """What a teacher has answered."""

    answers: dict[tuple[int, ...], TopLogprobs] = field(default_factory=dict)

    def of(self, sequences: Sequence[Sequence[int]]) -> TopLogprobs:
        """The answers to sequences, one after the other."""
        found = [self.answers[tuple(one)] for one in sequences]
        return TopLogprobs(torch.cat([one.ids for one in found]), torch.cat([one.logprobs for one in found]))


def top_divergence(student: Tensor, teacher: TopLogprobs, *, is_reverse: bool) -> Tensor:
    """KL(student || teacher), or the other way, mean over tokens; all tokens but the teacher's top k count as one.

    student [N, V] logits, teacher of N tokens. Never more than the divergence over all tokens, and equal to it where
    the top k are all (the data processing inequality).
    """
    ours = student.log_softmax(dim=-1).gather(1, teacher.ids)  # [N, k]
    ours, theirs = _with_rest(ours), _with_rest(teacher.logprobs)
    per_token = ours.exp() * (ours - theirs) if is_reverse else theirs.exp() * (theirs - ours)
    return per_token.sum(dim=-1).mean()


def _with_rest(logprobs: Tensor) -> Tensor:
    """[N, k] -> [N, k + 1]."""
    rest = (1 - logprobs.exp().sum(dim=-1, keepdim=True)).clamp(min=_SMALLEST).log()
    return torch.cat([logprobs, rest], dim=-1)
