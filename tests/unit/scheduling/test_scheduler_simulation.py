"""The scheduler under thousands of random steps, against a cache that knows what every slot must hold."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits
from tests.fakes_engine import CacheOracle, FakeModel
from tests.scheduler_world import Seen, World, run_world

NUM_WORLDS = 40  # for each number of stages


@pytest.mark.parametrize(
    ("num_stages", "overlaps"),
    [(1, False), (1, True), (2, False), (3, False), (4, False)],
    ids=["1 stage", "1 stage, steps overlap", "2 stages", "3 stages", "4 stages"],
)
def test_no_schedule_lets_a_sequence_read_a_wrong_slot_or_draw_another_token(num_stages: int, overlaps: bool) -> None:
    seen = Seen()
    for seed in range(NUM_WORLDS):
        run_world(seed, num_stages, seen, overlaps=overlaps)
    assert seen.events["steps"] > 3000
    expected = {
        "pre-emptions",
        "cached",
        "moved",
        "prompt logprobs",
        "prompt logprobs over a pre-emption",
        "refused: queue full",
        "refused: too long",
        "aborted waiting",
        "aborted pre-empted",
        "aborted with prefill chunks in flight",
        "aborted with its draw in flight",
        *(f"ended by {reason}" for reason in ("stop", "length", "abort", "error")),
        *(f"{count} in flight" for count in range(1, num_stages + overlaps + 1)),
    }
    if overlaps:
        expected |= {"overlapped", "end of one that made way"}
    if num_stages + overlaps > 1:
        expected |= {"made way", "token of one that made way"}
    if num_stages > 1:  # with one, a step begins as soon as the last has ended
        expected |= {"aborted between two steps"}
    assert {name for name in expected if seen.events[name] < 5} == set()


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "steps overlap"])
def test_steps_that_fail_leave_nothing_that_is_found_or_read(overlaps: bool) -> None:
    seen = Seen()
    for seed in range(NUM_WORLDS):
        run_world(seed, 1, seen, failing_share=0.1, overlaps=overlaps)
    assert {name for name in ("failed", "cached", "moved", "pre-emptions") if seen.events[name] < 5} == set()


@pytest.mark.parametrize(
    ("num_stages", "overlaps"), [(1, False), (1, True), (2, False), (4, False)], ids=["1", "1, overlap", "2", "4"]
)
def test_no_loss_of_shards_repeats_drops_or_changes_a_token(num_stages: int, overlaps: bool) -> None:
    seen = Seen()
    for seed in range(2 * NUM_WORLDS):
        run_world(seed, num_stages, seen, losses=0.05, overlaps=overlaps)
    expected = {
        "resumed",
        "suspects",
        "suspect drawn",
        "replayed",
        "cached",
        "pre-emptions",
        "prompt logprobs",
        "ended by stop",
        "ended by length",
    }
    assert {name for name in expected if seen.events[name] < 20} == set()


@pytest.mark.parametrize(("num_stages", "overlaps"), [(1, True), (2, False), (4, False)], ids=["1, overlap", "2", "4"])
@pytest.mark.parametrize("losses", [0.0, 0.03], ids=["", "lost shards"])
def test_neither_priorities_nor_deadlines_change_a_token(num_stages: int, overlaps: bool, losses: float) -> None:
    seen = Seen()
    for seed in range(NUM_WORLDS // 2):
        run_world(seed, num_stages, seen, losses=losses, overlaps=overlaps, priorities=(-3, 0, 0, 7), timed_share=0.4)
    expected = {
        "expired waiting",
        "expired running",
        "refused: too late",
        "outranked",
        "first one outranked",
        "let past",
        "made way",
        "ended by stop",
        "ended by length",
    }
    assert {name for name in expected if seen.events[name] < 5} == set()


def decode_gaps(world: World, num_rounds: int) -> Iterator[int]:
    """How many steps each decoding sequence waited from one of its tokens to the next, itself included."""
    last_step: dict[tuple[int, int], int] = {}
    for _ in range(num_rounds):
        if world.coin.random() < 0.3:
            world.arrive()
        while (step := world.scheduler.schedule()) is not None:
            output = world.oracle.run(step)
            world.in_flight.append((output, set()))
            members = world.oracle.sequences(step)
            for member, is_drawn in zip(members, step.samples, strict=True):
                if is_drawn:
                    if member in last_step:
                        yield step.step_id - last_step[member]
                    last_step[member] = step.step_id
        for member in list(last_step):
            if world.clients[member[0]].sequences[member[1]].is_finished:
                del last_step[member]
        for _ in range(world.coin.randint(1, len(world.in_flight)) if world.in_flight else 0):
            world.step_back()
    assert world.scheduler.num_preemptions == 0


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_decoding_sequences_take_turns_however_many_prompts_come(num_stages: int) -> None:
    gaps: Counter[int] = Counter()
    for seed in range(12):
        coin = random.Random(seed)
        max_num_seqs = coin.randint(2, 12)
        budget = max_num_seqs + coin.choice([0, 1, 8])
        limits = EngineLimits(max_num_seqs, budget, max_model_len=100, block_size=4, num_blocks=25 * max_num_seqs)
        gaps.update(decode_gaps(World(seed, num_stages, limits, Seen(), owners=("",)), num_rounds=120))
    assert sum(gaps.values()) > 1500
    # One round in flight; at worst, while sequences that began together are spread over the steps, one more to wait.
    assert max(gaps) <= 2 * num_stages - 1
    assert sum(count for gap, count in gaps.items() if gap > num_stages + 1) <= 0.005 * sum(gaps.values())


def test_a_wrong_slot_does_not_escape_the_oracle() -> None:
    """The proof above rests on the oracle: here it must object."""
    limits = EngineLimits(4, 16, 16, block_size=2, num_blocks=8)
    scheduler = Scheduler(limits, num_stages=1, max_queued=4)
    oracle = CacheOracle(limits, FakeModel())
    for seed in (1, 2):
        scheduler.add(GenerateRequest(f"request-{seed}", [3, 4, 5], SamplingParams(max_tokens=8, seed=seed)))
    step = scheduler.schedule()
    assert step is not None
    scheduler.update(oracle.run(step))
    step = scheduler.schedule()
    assert step is not None
    swapped = replace(step, slot_rows=step.slot_rows[::-1])
    with pytest.raises(AssertionError, match=r"reads|not drawn"):
        oracle.run(swapped)
