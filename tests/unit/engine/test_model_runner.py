"""Steps of one whole model: tokens depend on the sequence alone, not on how its work is cut up and placed."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serve_app.engine.model_runner import ModelRunner
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import DRAWN_BEFORE, PromptTargets, SequenceStart, StepInput
from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.parity.comparison import LOGPROB_TOLERANCE, logprob_error, make_references
from tests.plain_driver import Outcome, greedy, load_runner, run_in_process

NUM_OUTPUTS = 12
LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64, block_size=4, num_blocks=100)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors are tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def prompts(*lengths: int) -> list[list[int]]:
    randomness = random.Random(0)
    return [[randomness.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]


def run(directory: Path, limits: EngineLimits, own_prompts: list[list[int]]) -> list[Outcome]:
    requests = [
        greedy(str(index), prompt, NUM_OUTPUTS, with_prompt_logprobs=True) for index, prompt in enumerate(own_prompts)
    ]
    return run_in_process(load_runner(directory, limits), limits, requests)


def test_prompts_that_begin_alike_share_blocks_and_go_on_in_runs_of_their_own(llama: Path) -> None:
    start, *ends = prompts(21, 3, 9, 1, 6)
    own_prompts = [[*start, *end] for end in ends]
    runner = load_runner(llama, LIMITS)
    results = {}
    for joins_blocks in (False, True):
        steps: list[StepInput] = []
        requests = [greedy(str(index), prompt, NUM_OUTPUTS) for index, prompt in enumerate(own_prompts)]
        outcomes = run_in_process(runner, LIMITS, requests, steps.append, joins_blocks=joins_blocks)
        results[joins_blocks] = [outcome.token_ids for outcome in outcomes]
        assert steps[0].num_computed == [0, 20, 20, 20]
        assert sum(len(step.moved) for step in steps) == (3 if joins_blocks else 0)
        assert all(step.copies for step in steps if step.moved)
    references = make_references(llama, own_prompts, NUM_OUTPUTS)
    assert results[False] == results[True] == [reference.token_ids for reference in references]


@pytest.mark.parametrize(
    "limits",
    [
        replace(LIMITS, max_num_batched_tokens=7),
        replace(LIMITS, max_num_batched_tokens=1),
        replace(LIMITS, block_size=1, num_blocks=400),
        replace(LIMITS, block_size=16, num_blocks=25),
        replace(LIMITS, max_num_seqs=1),
        replace(LIMITS, max_num_seqs=3, num_blocks=14),
    ],
    ids=["chunks of 7", "chunks of 1", "blocks of 1", "blocks of 16", "one at a time", "few blocks and rows"],
)
def test_sizes_of_chunks_blocks_and_batches_change_no_token(llama: Path, limits: EngineLimits) -> None:
    own_prompts = prompts(5, 31, 1, 12, 20, 2)
    references = make_references(llama, own_prompts, NUM_OUTPUTS)
    outcomes = run(llama, limits, own_prompts)
    assert [outcome.token_ids for outcome in outcomes] == [reference.token_ids for reference in references]
    assert max(map(logprob_error, references, outcomes)) < LOGPROB_TOLERANCE


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        ("llama", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
        (
            "llama",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
        ("llama", {"rope_type": "dynamic", "factor": 4.0}),  # as long as all sequences are within the model's length
        (
            "phi3",
            {
                "rope_type": "longrope",
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 3.0, 4.0],
                "original_max_position_embeddings": 64,
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value["rope_type"],
)
def test_stretched_rotary_positions_are_those_of_transformers(
    tmp_path: Path, name: str, rope: dict[str, object]
) -> None:
    changes = {"original_max_position_embeddings": 64} if name == "phi3" else {}
    directory = make_checkpoint(name, tmp_path, rope_parameters={"rope_theta": 10_000.0, **rope}, **changes)
    own_prompts = prompts(31, 7, 20)
    references = make_references(directory, own_prompts, NUM_OUTPUTS)
    outcomes = run(directory, LIMITS, own_prompts)
    assert [outcome.token_ids for outcome in outcomes] == [reference.token_ids for reference in references]
    assert max(map(logprob_error, references, outcomes)) < LOGPROB_TOLERANCE


def test_steps_that_overlap_give_the_same_tokens(llama: Path) -> None:
    own_prompts = prompts(5, 31, 1, 12, 20, 2)
    requests = [_drawn(str(index), prompt) for index, prompt in enumerate(own_prompts)]
    limits = replace(LIMITS, max_num_seqs=4, num_blocks=30)
    steps: list[StepInput] = []
    one_by_one, overlapped = (
        run_in_process(load_runner(llama, limits), limits, requests, on_step, overlaps_steps=overlaps)
        for on_step, overlaps in ((lambda _step: None, False), (steps.append, True))
    )
    assert overlapped == one_by_one
    assert sum(step.token_ids.count(DRAWN_BEFORE) for step in steps) > NUM_OUTPUTS


def test_the_order_of_blocks_changes_no_bit(llama: Path) -> None:
    """The same steps with every block renamed."""
    renamed = list(range(LIMITS.num_blocks))
    random.Random(1).shuffle(renamed)
    own_prompts = prompts(5, 31, 12)
    expected, shuffled = (
        _logprobs(llama, own_prompts, rename) for rename in (lambda block: block, lambda block: renamed[block])
    )
    assert shuffled == expected


def test_a_row_begins_anew_with_each_sequence(llama: Path) -> None:
    runner = load_runner(llama, LIMITS)
    own_prompts = prompts(9, 14)
    alone = [run_in_process(load_runner(llama, LIMITS), LIMITS, [_drawn("0", prompt)]) for prompt in own_prompts]
    in_a_row = [run_in_process(runner, LIMITS, [_drawn("0", prompt)]) for prompt in own_prompts]
    assert in_a_row == alone


def test_a_step_that_only_prefills_draws_nothing(llama: Path) -> None:
    runner = load_runner(llama, LIMITS)
    start = SequenceStart(2, 0, SamplingParams(4, 0, temperature=0.0), [], 0, [], 0)
    first = StepInput(7, [start], [2], [5], [0], [[3, 9]], [5, 6, 7, 8, 9], [False])
    output = runner.run(first)
    assert output is not None
    assert (output.step_id, output.token_ids, output.prompt_logprobs) == (7, [], {})
    second = StepInput(8, [], [2], [2], [5], [[]], [10, 11], [True], {0: PromptTargets(0, [11], 2)})
    output = runner.run(second)
    assert output is not None
    assert len(output.token_ids) == 1
    entry = output.prompt_logprobs[0][0]
    assert entry.token_id == 11
    assert len(entry.top_token_ids) == 2
    whole = StepInput(
        9,
        [replace(start, slot_row=0)],
        [0],
        [7],
        [0],
        [[20, 21]],
        [5, 6, 7, 8, 9, 10, 11],
        [True],
        {0: PromptTargets(5, [11], 2)},
    )
    at_once = runner.run(whole)
    assert at_once is not None
    assert at_once.token_ids == output.token_ids
    assert at_once.prompt_logprobs[0][0].logprob == pytest.approx(entry.logprob, abs=1e-5)


def test_logits_that_are_no_numbers_end_their_sequence_alone(llama: Path) -> None:
    runner = load_runner(llama, LIMITS)
    embedding = runner._stage.model.get_input_embeddings().weight
    embedding[98] = torch.nan
    bad, good = run_in_process(runner, LIMITS, [greedy("bad", [5, 98, 6], 4), greedy("good", [5, 7, 6], 4)])
    assert (bad.finish_reason, bad.token_ids) == ("error", [])
    assert (good.finish_reason, len(good.token_ids)) == ("length", 4)


def _drawn(request_id: str, prompt: list[int]) -> GenerateRequest:
    """A request whose sampling state must not outlive it."""
    penalized = SamplingParams(
        NUM_OUTPUTS, seed=3, temperature=0.0, presence_penalty=1.5, logit_bias={4: 3.0}, num_prompt_logprobs=1
    )
    return GenerateRequest(request_id, prompt, penalized)


def _logprobs(directory: Path, own_prompts: list[list[int]], rename: Callable[[int], int]) -> list[Outcome]:
    class Renaming(ModelRunner):
        def _take_blocks(self, step: StepInput) -> None:
            new_blocks = [[rename(block) for block in blocks] for blocks in step.new_blocks]
            super()._take_blocks(replace(step, new_blocks=new_blocks))

    runner = load_runner(directory, LIMITS, Renaming)
    requests = [
        greedy(str(index), prompt, NUM_OUTPUTS, with_prompt_logprobs=True) for index, prompt in enumerate(own_prompts)
    ]
    return run_in_process(runner, LIMITS, requests)
