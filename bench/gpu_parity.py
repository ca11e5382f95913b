"""The engine against transformers in bfloat16: greedy tokens, and log-probabilities of the prompt."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.engine_alone import EngineAlone, whole_model
from bench.generated import Generated, WorkItem
from bench.gpu_device import Bench
from bench.gpu_part import Rows
from bench.random_llama import SIZES, write_checkpoint
from bench.workload import poisson_workload
from serve_app.types.shards import EngineLimits

# Two results that are each right to within the noise of bfloat16 are 1.4 noises apart, the difference of two such
# differences 2; the rest is for the largest of many.
_MAX_MEAN_NOISES = 2.0
_MAX_NOISES = 8.0
_NUM_SEQUENCES = 16
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Parity:
    """What was compared, and how far apart it was. Differences are of log-probabilities, and root mean squares."""

    num_sequences: int
    first_differences: list[int]  # output index at which each of the others differs first
    max_gap: float  # by how much the reference prefers its own token there, at most
    num_prompt_tokens: int
    max_difference: float
    mean_difference: float
    noise: float  # how far the reference is from itself in float32

    @property
    def is_ok(self) -> bool:
        """Whether the differences are those of rounding."""
        largest = max(self.max_gap, self.max_difference)
        return largest <= _MAX_NOISES * self.noise and self.mean_difference <= _MAX_MEAN_NOISES * self.noise

    @property
    def problem(self) -> str | None:
        """Differences that rounding does not explain."""
        return None if self.is_ok else "the engine and transformers differ by more than bfloat16's rounding"

    def __str__(self) -> str:
        count = len(self.first_differences)
        gap = f", first where the reference's logits are {self.max_gap:.4f} apart or less" if count else ""
        return (
            f"parity {'holds' if self.is_ok else 'DOES NOT HOLD'}: {count} of {self.num_sequences} greedy sequences "
            f"differ{gap};\nlog-probabilities of {self.num_prompt_tokens} prompt tokens differ by "
            f"{self.max_difference:.4f} at most, {self.mean_difference:.4f} root mean square; bfloat16 itself differs "
            f"from float32 by {self.noise:.4f}"
        )


def measure_parity(bench: Bench) -> Rows:
    """One row."""
    size, num_prompt_tokens, num_outputs = ("tiny", 16, 12) if bench.is_tiny else ("120M", 128, 128)
    yield check_parity(size, bench.device, num_prompt_tokens, num_outputs)


def check_parity(size: str, device: torch.device, max_prompt_tokens: int, num_outputs: int) -> Parity:
    """Load one random checkpoint by our loader and by transformers, and let both answer the same prompts.

    Ours runs them together, in prefill chunks; the reference one at a time.
    """
    llama = SIZES[size]
    lengths = (4, max_prompt_tokens), (num_outputs, num_outputs)
    items = poisson_workload(_NUM_SEQUENCES, 100.0, *lengths, llama.vocab_size)
    with tempfile.TemporaryDirectory() as directory:
        source_dir = write_checkpoint(llama, torch.bfloat16, Path(directory))
        stage = whole_model(source_dir, "bfloat16", device)
        reference = AutoModelForCausalLM.from_pretrained(
            str(source_dir), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    max_model_len = max_prompt_tokens + num_outputs
    limits = EngineLimits(
        max_num_seqs=_NUM_SEQUENCES,
        max_num_batched_tokens=max(32, max_prompt_tokens // 2),
        max_model_len=max_model_len,
        block_size=_BLOCK_SIZE,
        num_blocks=_NUM_SEQUENCES * -(-max_model_len // _BLOCK_SIZE),
    )
    answers = EngineAlone(stage, limits, device).run(items, num_prompt_logprobs=0)
    return _compare(reference.to(device).eval(), items, answers)


@torch.inference_mode()
def _compare(reference: PreTrainedModel, items: Sequence[WorkItem], answers: Sequence[Generated]) -> Parity:
    first_differences: list[int] = []
    gaps = [0.0]
    for item, answer in zip(items, answers, strict=True):
        expected = _greedy(reference, item)
        if answer.token_ids != expected:
            index = next(i for i, pair in enumerate(zip(answer.token_ids, expected, strict=True)) if pair[0] != pair[1])
            first_differences.append(index)
            logits = _logits(reference, item.prompt_token_ids + expected[:index])[-1]
            gaps.append(float(logits[expected[index]] - logits[answer.token_ids[index]]))
    ours = torch.tensor([entry.logprob for answer in answers for entry in answer.prompt_logprobs])
    theirs = _prompt_logprobs(reference, items)
    exact = _prompt_logprobs(reference.float(), items)
    return Parity(
        num_sequences=len(items),
        first_differences=first_differences,
        max_gap=max(gaps),
        num_prompt_tokens=ours.numel(),
        max_difference=float((ours - theirs).abs().max()),
        mean_difference=float((ours - theirs).square().mean().sqrt()),
        noise=float((theirs - exact).square().mean().sqrt()),
    )


def _greedy(reference: PreTrainedModel, item: WorkItem) -> list[int]:
    prompt = torch.tensor([item.prompt_token_ids], device=reference.device)
    tokens = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=item.num_outputs,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    outputs: list[int] = tokens[0, prompt.shape[1] :].tolist()
    return outputs


def _prompt_logprobs(reference: PreTrainedModel, items: Sequence[WorkItem]) -> Tensor:
    """Log-probability of every prompt token but the first, of all prompts: [N] float32."""
    found: list[Tensor] = []
    for item in items:
        logprobs = _logits(reference, item.prompt_token_ids[:-1]).log_softmax(dim=-1)
        followers = torch.tensor(item.prompt_token_ids[1:], device=logprobs.device)
        found.append(logprobs.gather(1, followers[:, None]).squeeze(1))
    return torch.cat(found).cpu()


def _logits(reference: PreTrainedModel, token_ids: list[int]) -> Tensor:
    """Logits after each token: [T, V] float32."""
    logits: Tensor = reference(torch.tensor([token_ids], device=reference.device)).logits
    return logits[0].float()
