"""What transformers makes of a prompt, and when our tokens count as the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.checkpoints import load_reference
from tests.plain_driver import Outcome

NEAR_TIE = 1e-4  # logits: fp32 matrix products differ with the batch size by about that much
LOGPROB_TOLERANCE = 1e-4
ALLOWED_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Reference:
    """One prompt and its greedy continuation by transformers."""

    prompt: list[int]
    token_ids: list[int]
    gaps: list[float]  # by output token: the best logit less the second best
    prompt_logprobs: list[float]  # of prompt tokens 1..


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a sequence first leaves the reference."""

    label: str
    index: int  # output token
    gap: float

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains it."""
        return self.gap < NEAR_TIE


@dataclass(slots=True)
class Comparison:
    """Differences among all sequences seen.

    Sequences equal the reference when none differs at another place than a near tie, and few differ there.
    """

    num_sequences: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, label: str, references: Sequence[Reference], outcomes: Sequence[Outcome]) -> None:
        """Compare each sequence up to its first difference."""
        for index, (reference, outcome) in enumerate(zip(references, outcomes, strict=True)):
            self.num_sequences += 1
            difference = first_difference(f"{label} sequence {index}", reference, outcome.token_ids)
            if difference is not None:
                self.differences.append(difference)

    def unexplained(self) -> list[Difference]:
        """Differences at no near tie."""
        return [one for one in self.differences if not one.is_near_tie]

    def is_too_much(self) -> bool:
        """Whether more sequences differ than near ties may explain."""
        return len(self.differences) > ALLOWED_SHARE * self.num_sequences


def first_difference(label: str, reference: Reference, token_ids: Sequence[int]) -> Difference | None:
    """Where tokens leave the reference; a sequence that is too short or too long does so at no near tie."""
    for index, (expected, got) in enumerate(zip(reference.token_ids, token_ids, strict=False)):
        if expected != got:
            return Difference(label, index, reference.gaps[index])
    if len(reference.token_ids) != len(token_ids):
        return Difference(label, min(len(reference.token_ids), len(token_ids)), float("inf"))
    return None


def logprob_error(reference: Reference, outcome: Outcome) -> float:
    """Largest distance among the prompt's log-probabilities, all of which must be there."""
    got = [entry.logprob for entry in outcome.prompt_logprobs]
    assert [entry.token_id for entry in outcome.prompt_logprobs] == reference.prompt[1:]
    return max((abs(a - b) for a, b in zip(got, reference.prompt_logprobs, strict=True)), default=0.0)


@torch.inference_mode()
def make_references(directory: Path, prompts: Sequence[list[int]], num_outputs: int) -> list[Reference]:
    """Continue prompts by transformers' own `generate`, all at once (padded on the left)."""
    model = load_reference(directory)
    width = max(map(len, prompts))
    generated = model.generate(
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=num_outputs,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, width:].tolist()
    references = []
    for prompt, token_ids in zip(prompts, generated, strict=True):
        logits = model(torch.tensor([prompt + token_ids])).logits[0, :-1]  # [T - 1, V]
        best, second = logits[len(prompt) - 1 :].topk(2).values.unbind(-1)
        logprobs = logits[: len(prompt) - 1].log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None])[:, 0]
        references.append(Reference(prompt, token_ids, (best - second).tolist(), chosen.tolist()))
    return references
