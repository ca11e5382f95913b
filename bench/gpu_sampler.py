"""The sampler on the device and on the CPU: the same logits, seeds and settings have to give the same tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bench.gpu_device import Bench, measure_us
from bench.gpu_part import Rows, row_or_failure
from serve_app.engine.sampler import Sampler
from serve_app.types.generation import SamplingParams
from serve_app.types.steps import SequenceStart

HEADER = f"{'settings':>24} {'rows':>5} {'vocabulary':>10} {'us a step':>10}  tokens"
_NUM_ROWS = 64
_NUM_STEPS = 3
_NUM_PROMPT_TOKENS = 40
_PARAMS = SamplingParams(max_tokens=_NUM_STEPS + 1, seed=0)
SETTINGS = {
    "greedy": replace(_PARAMS, temperature=0.0),
    "temperature": replace(_PARAMS, temperature=0.8),
    "min_p": replace(_PARAMS, min_p=0.02),
    "top_k": replace(_PARAMS, top_k=50),
    "top_p": replace(_PARAMS, top_p=0.9),
    "top_p of flat logits": replace(_PARAMS, temperature=20.0, top_p=0.9),  # more tokens than are ranked at first
    "penalties": replace(_PARAMS, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
}


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """One kind of settings."""

    settings: str
    num_rows: int
    vocab_size: int
    step_us: float
    num_tokens: int
    num_different: int
    wait: str | None  # what the host has waited for in a step whose batch was there before
    may_wait: bool

    @property
    def problem(self) -> str | None:
        """Tokens that are not those of the CPU, or a wait for the device."""
        if self.num_different:
            return f"{self.num_different} of {self.num_tokens} tokens are not the CPU's ({self.settings})"
        if self.wait is not None and not self.may_wait:
            return f"the host waits for the device before the tokens are read ({self.settings}): {self.wait}"
        return None

    def __str__(self) -> str:
        sizes = f"{self.settings:>24} {self.num_rows:>5} {self.vocab_size:>10} {self.step_us:10.1f}"
        waits = "" if self.wait is None else ", the host waits"
        return f"{sizes}  {self.num_different} of {self.num_tokens} differ{waits}"


def check_sampler(bench: Bench) -> Rows:
    """A row for each kind of settings; logits are bfloat16, so that many are equal."""
    vocab_size = 1024 if bench.is_tiny else 128_256
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_STEPS, _NUM_ROWS, vocab_size)
    logits = (3 * torch.randn(shape, generator=generator)).to(torch.bfloat16)
    for name, params in SETTINGS.items():
        yield row_or_failure(name, partial(_compare, name, params, logits, bench.device), bench.is_usable)


def _compare(name: str, params: SamplingParams, logits: Tensor, device: torch.device) -> SamplerRow:
    """logits [steps, B, V] on the CPU."""
    num_rows, vocab_size = logits.shape[1:]
    expected = draw_steps(_started(params, num_rows, vocab_size, torch.device("cpu")), logits)
    found = draw_steps(_started(params, num_rows, vocab_size, device), logits.to(device))
    sampler, first = _started(params, num_rows, vocab_size, device), logits[0].to(device)
    step_us = measure_us(lambda: sampler.sample(first, list(range(num_rows))), device)
    wait = wait_of(lambda: sampler.draw(first, list(range(num_rows))), device)
    may_wait = params.top_p < 1.0 and params.top_k == 0  # for whether enough tokens are ranked
    differ = num_different(expected, found)
    return SamplerRow(name, num_rows, vocab_size, step_us, len(expected), differ, wait, may_wait)


def wait_of(launch: Callable[[], object], device: torch.device) -> str | None:
    """What torch says of the first wait for the device in a call; None: there is none, or no such device."""
    if device.type != "cuda":
        return None
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return None


def draw_steps(sampler: Sampler, logits: Tensor) -> list[int]:
    """The tokens of all rows of each step, one step after the other."""
    slot_rows = list(range(logits.shape[1]))
    return [token for step in logits for token in sampler.sample(step, slot_rows).token_ids]


def num_different(expected: Sequence[int], found: Sequence[int]) -> int:
    """Places where they differ."""
    return sum(one != other for one, other in zip(expected, found, strict=True))


def _started(params: SamplingParams, num_rows: int, vocab_size: int, device: torch.device) -> Sampler:
    """A sampler that has a sequence in each row."""
    sampler = Sampler(num_rows, vocab_size, device)
    for row in range(num_rows):
        history = [(row * 31 + place * 7) % vocab_size for place in range(_NUM_PROMPT_TOKENS)]
        sampler.start(
            SequenceStart(
                slot_row=row,
                choice=0,
                params=replace(params, seed=row),
                end_token_ids=[],
                num_outputs=0,
                history_token_ids=history if params.has_penalties else [],
                num_history_prompt_tokens=len(history) if params.has_penalties else 0,
            )
        )
    return sampler
