"""A step that the device has no memory for: its requests fail, and what comes after them is right."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from serve_app.engine.launched_step import LaunchedStep
from serve_app.engine.memory_guard import MemoryGuard
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.step_runner import PendingOutput
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput
from tests.checkpoints import make_checkpoint
from tests.plain_driver import greedy, load_runner, run_in_process

LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, block_size=4, num_blocks=60)


class Activations:
    """What a step has made when it fails."""


class FailingRunner:
    """Has no memory for any step."""

    def __init__(self) -> None:
        self.activations: weakref.ref[Activations] | None = None

    def launch(self, step: StepInput) -> PendingOutput | None:
        made = Activations()
        self.activations = weakref.ref(made)
        raise torch.OutOfMemoryError(f"CUDA out of memory in step {step.step_id}")


def test_what_the_step_held_is_gone_before_memory_is_given_back() -> None:
    runner = FailingRunner()
    held: list[object] = []
    gc.disable()
    try:
        guard = MemoryGuard(runner, lambda: held.append(runner.activations and runner.activations()))
        pending = guard.launch(StepInput(7, [], [0, 1], [3, 2], [0, 0], [[0], [1]], [5] * 5, [True, False]))
    finally:
        gc.enable()
    assert held == [None]
    assert pending is not None
    output = pending.output()
    assert (output.step_id, output.token_ids) == (7, [])
    assert output.error is not None
    assert "5 tokens of 2 requests" in output.error
    assert "lower engine.max_num_batched_tokens" in output.error


class LateFailure(ModelRunner):
    """Fails in one step, when half of the layers have written their keys and values."""

    step_to_fail = -1

    def launch(self, step: StepInput) -> LaunchedStep | None:
        if step.step_id != self.step_to_fail:
            return super().launch(step)
        layer = self._stage.own_layers[2]
        hook = layer.register_forward_pre_hook(_run_out)
        try:
            return super().launch(step)
        finally:
            hook.remove()


def _run_out(*_arguments: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("step_to_fail", [0, 1, 4])
def test_answers_after_a_failed_step_are_those_of_a_fresh_runner(tmp_path: Path, step_to_fail: int) -> None:
    torch.set_num_threads(1)
    directory = make_checkpoint("llama", tmp_path)
    prompts = [[3 + index % 20 for index in range(count)] for count in (21, 9, 14)]
    expected = run_in_process(load_runner(directory, LIMITS), LIMITS, requests_of(prompts))
    runner = load_runner(directory, LIMITS, LateFailure)
    assert isinstance(runner, LateFailure)
    runner.step_to_fail = step_to_fail
    scheduler = Scheduler(LIMITS, num_stages=1, max_queued=10, joins_blocks=True)
    guard = MemoryGuard(runner, lambda: None)
    failed = drive(scheduler, guard, prompts)
    assert set(failed) == {"0", "1", "2"}
    assert all(reason == "error" for reason, _tokens in failed.values())
    runner.step_to_fail = -1
    after = drive(scheduler, guard, prompts)
    assert [tokens for _reason, tokens in after.values()] == [outcome.token_ids for outcome in expected]


def requests_of(prompts: list[list[int]]) -> list[GenerateRequest]:
    return [greedy(str(index), prompt, 8) for index, prompt in enumerate(prompts)]


def drive(scheduler: Scheduler, guard: MemoryGuard, prompts: list[list[int]]) -> dict[str, tuple[str, list[int]]]:
    """Run requests to their ends: why each has ended, and its tokens."""
    tokens: dict[str, list[int]] = {}
    ended: dict[str, tuple[str, list[int]]] = {}
    for request in requests_of(prompts):
        scheduler.add(request)
    while (step := scheduler.schedule()) is not None:
        pending = guard.launch(step)
        assert pending is not None
        for news in scheduler.update(pending.output()):
            chunk, name = news.chunk, news.sequence.request_id
            tokens.setdefault(name, []).extend(chunk.token_ids)
            if chunk.finish_reason is not None:
                ended[name] = chunk.finish_reason, tokens[name]
    scheduler.check()
    return ended
