"""Steps that are run again over the same buffers give the tokens of steps that are run one by one."""

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.engine.attention.padded import PaddedBackend
from serve_app.engine.block_tables import IntArray
from serve_app.engine.busy_time import HostBusyTime
from serve_app.engine.decode_graphs import Replay, capture_on, graph_sizes
from serve_app.engine.host_staging import HostStaging
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits, ShardSpec
from serve_app.types.steps import StepInput
from tests.called_again import CalledAgain, PoisonedBuffers
from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.parity.comparison import make_references
from tests.plain_driver import greedy, load_runner, run_in_process

NUM_OUTPUTS = 16
LIMITS = EngineLimits(max_num_seqs=9, max_num_batched_tokens=32, max_model_len=64, block_size=4, num_blocks=60)
LENGTHS = (5, 31, 1, 12, 20, 2, 7, 7, 9, 3, 30)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def prompts() -> list[list[int]]:
    randomness = random.Random(0)
    return [[randomness.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_captured_steps_give_the_tokens_of_transformers(tmp_path: Path, name: str) -> None:
    directory = make_checkpoint(name, tmp_path)
    capture = CalledAgain()
    runner = load_runner(directory, LIMITS, PoisonedBuffers, attention="padded", capture=capture)
    requests = [greedy(str(index), prompt, NUM_OUTPUTS - index) for index, prompt in enumerate(prompts())]
    outcomes = run_in_process(runner, LIMITS, requests)
    references = make_references(directory, prompts(), NUM_OUTPUTS)
    expected = [reference.token_ids[: NUM_OUTPUTS - index] for index, reference in enumerate(references)]
    assert [outcome.token_ids for outcome in outcomes] == expected
    assert capture.num_replays > NUM_OUTPUTS // 2  # the other steps have prompts in them


def test_drawn_tokens_and_log_probabilities_are_those_of_single_steps(llama: Path) -> None:
    def outcomes_of(runner: ModelRunner) -> list[object]:
        params = SamplingParams(NUM_OUTPUTS, seed=3, temperature=1.0, top_p=0.9, presence_penalty=0.5, num_logprobs=3)
        requests = [GenerateRequest(str(index), prompt, params) for index, prompt in enumerate(prompts())]
        return [(outcome.token_ids, outcome.finish_reason) for outcome in run_in_process(runner, LIMITS, requests)]

    captured = load_runner(llama, LIMITS, PoisonedBuffers, attention="padded", capture=CalledAgain())
    assert outcomes_of(captured) == outcomes_of(load_runner(llama, LIMITS))


def test_captured_steps_that_are_launched_ahead_give_the_same_tokens(llama: Path) -> None:
    params = SamplingParams(NUM_OUTPUTS, seed=3, top_k=20, repetition_penalty=1.2, num_logprobs=2, ignore_eos=True)
    requests = [GenerateRequest(str(index), prompt, params) for index, prompt in enumerate(prompts())]
    capture = CalledAgain()
    ahead = load_runner(llama, LIMITS, PoisonedBuffers, attention="padded", capture=capture)
    outcomes = run_in_process(ahead, LIMITS, requests, overlaps_steps=True)
    assert outcomes == run_in_process(load_runner(llama, LIMITS), LIMITS, requests)
    assert capture.num_replays > NUM_OUTPUTS // 2


class SentArrays(HostStaging):
    """Keeps how much each copy to the device has."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.num_words: list[int] = []

    def upload(self, arrays: Sequence[IntArray]) -> list[Tensor]:
        self.num_words.append(sum(array.size for array in arrays))
        return super().upload(arrays)


def test_a_captured_step_sends_its_columns_and_what_is_new_of_its_tables_in_one_copy(llama: Path) -> None:
    runner = load_runner(llama, LIMITS, attention="padded", capture=CalledAgain())
    staging = runner._staging = SentArrays()
    steps: list[StepInput] = []
    requests = [greedy(str(index), prompt, NUM_OUTPUTS) for index, prompt in enumerate(prompts()[:3])]
    run_in_process(runner, LIMITS, requests, steps.append)
    assert len(staging.num_words) == len(steps)
    decodes = [pair for pair in zip(steps, staging.num_words, strict=True) if len(pair[0].token_ids) == 3]
    assert len(decodes) > NUM_OUTPUTS // 2
    for step, num_words in decodes:
        num_new_blocks = sum(map(len, step.new_blocks))
        assert num_words == 5 * 4 + 2 * num_new_blocks  # of the graph for 4 sequences


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, [1]),
        (3, [3, 2, 1]),
        (8, [8, 4, 2, 1]),
        (20, [20, 16, 8, 4, 2, 1]),
        (64, [64, 56, 48, 40, 32, 24, 16, 8, 4, 2, 1]),
    ],
)
def test_sizes_that_are_captured(max_num_seqs: int, sizes: list[int]) -> None:
    assert graph_sizes(max_num_seqs) == sizes


def test_no_graph_is_larger_than_launches_are_worth() -> None:
    assert graph_sizes(4096)[0] == 256


def test_a_batch_that_no_graph_has_room_for_is_run_step_by_step(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.engine.decode_graphs._MAX_SIZE", 2)
    capture = CalledAgain()
    runner = load_runner(llama, LIMITS, attention="padded", capture=capture)
    requests = [greedy(str(index), prompt, 4 + 4 * (index < 2)) for index, prompt in enumerate(prompts()[:4])]
    outcomes = run_in_process(runner, LIMITS, requests)
    expected = run_in_process(load_runner(llama, LIMITS), LIMITS, requests)
    assert outcomes == expected
    assert 0 < capture.num_replays <= 4  # of the two that are left


def test_a_forward_that_cannot_be_captured_is_run_step_by_step_and_said(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_function: Callable[[], Tensor]) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        runner = load_runner(llama, LIMITS, attention="padded", capture=refuse)
    assert "steps are not captured as graphs" in caplog.text
    assert "operation not permitted" in caplog.text
    requests = [greedy("0", prompts()[0], 4)]
    assert run_in_process(runner, LIMITS, requests) == run_in_process(load_runner(llama, LIMITS), LIMITS, requests)


def test_nothing_is_captured_on_cpu() -> None:
    assert capture_on(torch.device("cpu")) is None


@dataclass(slots=True)
class HandOver(LoneCommunicator):
    """From one stage to the next in this process; what is under way is the sender's own memory, as on a GPU."""

    under_way: deque[Tensor]
    now_s: float = 0.0  # by which a stage's wait takes a while

    def send_next(self, tensor: Tensor) -> None:
        self.under_way.append(tensor)

    def receive_previous(self, tensor: Tensor) -> Tensor:
        self.now_s += 5
        return tensor.copy_(self.under_way.popleft())


def test_a_stage_s_next_replay_leaves_what_is_being_sent(llama: Path) -> None:
    limits = replace(LIMITS, num_blocks=100)
    communicator = HandOver(deque())
    stages = []
    for stage in range(2):
        shard = ShardSpec(stage, 2, 0, 1, 2 * stage, 2 * stage + 2)
        loaded = load_stage(llama, "float32", shard, communicator, torch.device("cpu"))
        backend = PaddedBackend(limits.block_size)
        stages.append(PoisonedBuffers(loaded.stage, limits, communicator, torch.device("cpu"), backend, CalledAgain()))
        stages[-1].busy = HostBusyTime(lambda: communicator.now_s)
    scheduler = Scheduler(limits, num_stages=2, max_queued=100)
    answers: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts()[:8]):
        scheduler.add(greedy(str(index), prompt, NUM_OUTPUTS))
        answers[str(index)] = []
    while scheduler.has_work:
        steps = []
        while (step := scheduler.schedule()) is not None:
            stages[0].run(step)
            steps.append(step)
        for step in steps:
            output = stages[1].run(step)
            assert output is not None
            for news in scheduler.update(output):
                answers[news.sequence.request_id] += news.chunk.token_ids
    assert communicator.now_s > 0
    assert [stage.busy.seconds for stage in stages] == [0, 0], "a wait for the stage before is none of the work"
    references = make_references(llama, prompts()[:8], NUM_OUTPUTS)
    assert list(answers.values()) == [reference.token_ids for reference in references]
