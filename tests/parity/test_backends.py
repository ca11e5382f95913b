"""Each way to decode gives what transformers gives: sequences together, and steps that run over the same buffers.

Every prompt comes twice: the second finds the first one's blocks. There are too few blocks for eight sequences at once.
"""

from importlib.util import find_spec

import pytest

from serve_app.engine.attention.backend import DecodeBackend
from serve_app.engine.model_runner import ModelRunner
from serve_app.types.generation import GenerateRequest
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput
from tests.called_again import CalledAgain, PoisonedBuffers
from tests.checkpoints import ARCHITECTURES
from tests.compiled import kernels_or_skip
from tests.parity.comparison import Comparison, Reference
from tests.parity.conftest import NUM_OUTPUTS, References
from tests.plain_driver import greedy, load_runner, run_in_process

LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=128, block_size=4, num_blocks=64)


def requests_of(references: list[Reference]) -> list[GenerateRequest]:
    return [greedy(str(index), one.prompt, NUM_OUTPUTS) for index, one in enumerate(references)]


def check(name: str, references: list[Reference], runner: ModelRunner, *, overlaps_steps: bool = False) -> None:
    steps: list[StepInput] = []
    outcomes = run_in_process(runner, LIMITS, requests_of(references), steps.append, overlaps_steps=overlaps_steps)
    comparison = Comparison()
    comparison.add(name, references, outcomes)
    assert not comparison.unexplained()
    assert not comparison.is_too_much()
    starts = [start for step in steps for start in step.starts]
    assert len(starts) > len(references), "none was pre-empted"
    found = [step.num_computed[step.slot_rows.index(start.slot_row)] for step in steps for start in step.starts]
    assert max(found) > 0, "nothing was found in the cache"


@pytest.mark.parametrize("overlaps_steps", [False, True], ids=["", "steps overlap"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sequences_decoded_together_give_what_transformers_gives(
    reference_of: References, name: str, overlaps_steps: bool
) -> None:
    directory, references = reference_of(name)
    capture = CalledAgain()
    runner = load_runner(directory, LIMITS, PoisonedBuffers, attention="padded", capture=capture)
    check(name, [*references, *references], runner, overlaps_steps=overlaps_steps)
    assert capture.num_replays > NUM_OUTPUTS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compiled_kernels_give_what_transformers_gives(reference_of: References, name: str) -> None:
    directory, references = reference_of(name)
    runner = load_runner(directory, LIMITS, kernels=kernels_or_skip())
    check(name, [*references, *references], runner)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton comes with torch for CUDA, not for CPU")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_kernels_of_our_own_give_what_transformers_gives(reference_of: References, name: str) -> None:
    directory, references = reference_of(name)
    runner = load_runner(directory, LIMITS, attention=make_triton())
    check(name, [*references[:6], *references[:6]], runner)


def make_triton() -> DecodeBackend:
    from serve_app.engine.attention.triton_backend import TritonBackend

    return TritonBackend(LIMITS.block_size, LIMITS.max_model_len)
