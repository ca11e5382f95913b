"""Newcomers and prefills that are under way: who comes first, and that neither starves."""

from collections import Counter

import pytest

from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.waiting_queue import TURNS
from serve_app.types.generation import GenerateRequest
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepOutput
from tests.unit.scheduling import test_fair_queue

BUDGET = 16


def request_of(owner: str, name: str = "", **more: int) -> GenerateRequest:
    """With a prompt that no other has."""
    return test_fair_queue.request_of(owner, name, cache_salt=owner + name, **more)


def scheduler_of(num_stages: int = 1, max_num_seqs: int = 8, num_blocks: int = 4096) -> Scheduler:
    limits = EngineLimits(max_num_seqs, BUDGET, 1024, block_size=4, num_blocks=num_blocks)
    return Scheduler(limits, num_stages=num_stages, max_queued=1000)


def run(scheduler: Scheduler, num_steps: int = 1) -> dict[str, int]:
    """Steps there and back: how many tokens of each request were in the last one, in its order."""
    took: dict[str, int] = {}
    for _ in range(num_steps):
        assert scheduler.schedule() is not None
        ((step_id, step),) = scheduler._in_flight.items()
        took = {one.request_id: count for one, count in zip(step.sequences, step.num_tokens, strict=True)}
        scheduler.update(StepOutput(step_id, [7] * sum(step.samples)))
    return took


def under_way(priority: int = 0) -> Scheduler:
    """A has a long prompt under way, and more of them wait."""
    scheduler = scheduler_of()
    for number in range(5):
        scheduler.add(request_of("a", str(number), num_tokens=10 * BUDGET, priority=priority))
    assert run(scheduler) == {"a0": BUDGET}
    return scheduler


def test_a_newcomer_of_an_owner_that_runs_nothing_goes_before_a_prefill_under_way() -> None:
    scheduler = under_way()
    scheduler.add(request_of("b", "0"))
    scheduler.add(request_of("b", "1"))
    assert list(run(scheduler).items()) == [("b0", 4), ("a0", BUDGET - 4)]
    assert run(scheduler) == {"b0": 1, "a0": BUDGET - 1}, (
        "then it runs something, and its second one waits for its turn"
    )
    scheduler.check()


def test_newcomers_of_several_owners_go_before_it_together() -> None:
    scheduler = under_way()
    for owner in "bcdefg":
        scheduler.add(request_of(owner))
    assert list(run(scheduler).items()) == [(owner, 4) for owner in "bcde"]
    assert list(run(scheduler).items()) == [*((owner, 1) for owner in "bcde"), ("a0", BUDGET - 4)]
    assert list(run(scheduler).items()) == [*((owner, 1) for owner in "bcde"), ("f", 4), ("g", 4), ("a0", 4)]


def test_without_owners_prefills_stay_in_the_order_in_which_they_came() -> None:
    scheduler = scheduler_of()
    for number in range(3):
        scheduler.add(request_of("", str(number), num_tokens=2 * BUDGET + 8))
    steps = [run(scheduler) for _ in range(4)]
    assert steps == [{"0": BUDGET}, {"0": BUDGET}, {"0": 8, "1": 8}, {"0": 1, "1": BUDGET - 1}]


def test_an_owner_that_has_had_more_waits_for_the_prefill() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("b", num_tokens=300, max_tokens=1))
    while scheduler.has_work:
        run(scheduler)
    scheduler.add(request_of("a", num_tokens=10 * BUDGET))
    run(scheduler)
    scheduler.add(request_of("b", "again"))
    assert run(scheduler) == {"a": BUDGET}


@pytest.mark.parametrize(("priority", "first"), [(0, "b"), (1, "b"), (2, "a0")])
def test_the_better_priority_comes_first_whoever_has_had_less(priority: int, first: str) -> None:
    scheduler = under_way(priority=1)
    scheduler.add(request_of("b", priority=priority))
    assert next(iter(run(scheduler))) == first


def test_endless_newcomers_leave_a_prefill_every_other_step() -> None:
    scheduler = under_way()
    num_steps = 0
    while not any(one.num_outputs for one in scheduler._running if one.owner == "a"):
        for place in range(4):  # as many tokens as a step has
            scheduler.add(request_of(f"{num_steps} {place}", max_tokens=1))
        run(scheduler)
        num_steps += 1
    assert num_steps <= 2 * 9, "nine chunks were left"


@pytest.mark.parametrize("num_stages", [1, 2])
def test_lone_requests_beside_long_prompts_wait_for_one_step_at_most_and_nothing_is_lost(num_stages: int) -> None:
    scheduler = scheduler_of(num_stages)
    for number in range(40):
        scheduler.add(request_of("a", str(number), num_tokens=6 * BUDGET, max_tokens=2))
    waited, tokens, arrived = Counter[int](), Counter[str](), 0
    for number in range(126):
        if number % 9 == 5:
            scheduler.add(request_of("b", str(number), max_tokens=2))
            arrived = scheduler._next_step_id
        while scheduler.schedule() is not None:
            pass
        (step_id, step), *_ = scheduler._in_flight.items()
        for sequence, count, is_drawn in zip(step.sequences, step.num_tokens, step.samples, strict=True):
            tokens[sequence.owner] += count
            if sequence.owner == "b" and sequence.num_outputs == 0 and is_drawn:
                waited[step_id - arrived] += 1
        scheduler.update(StepOutput(step_id, [7] * sum(step.samples)))
        scheduler.check()
    assert sum(waited.values()) == 14
    assert set(waited) <= {0, 1}
    assert tokens["a"] >= 0.98 * (126 * BUDGET - tokens["b"]), "what b leaves is not lost"


def test_one_whose_prompt_has_begun_goes_before_those_of_an_owner_that_has_had_more() -> None:
    scheduler = scheduler_of()
    for number in range(5):
        scheduler.add(request_of("a", str(number), num_tokens=3 * BUDGET - 3))
    steps = [run(scheduler) for _ in range(2)]
    scheduler.add(request_of("c", num_tokens=3, max_tokens=1))
    scheduler.add(request_of("b", num_tokens=BUDGET))
    steps += [run(scheduler) for _ in range(3)]
    assert steps == [
        {"a0": BUDGET},
        {"a0": BUDGET},
        {"c": 3, "b": BUDGET - 3},
        {"a0": BUDGET - 3, "b": 3},
        {"a0": 1, "b": 1, "a1": BUDGET - 2},
    ]


def test_prefills_of_two_owners_share_the_steps() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", num_tokens=8 * BUDGET))
    run(scheduler)
    scheduler.add(request_of("b", num_tokens=3 * BUDGET))
    steps = [run(scheduler) for _ in range(5)]
    assert steps == [{"b": BUDGET}, {"a": BUDGET}, {"b": BUDGET}, {"a": BUDGET}, {"b": BUDGET}]


def test_one_that_is_pre_empted_and_started_again_while_a_step_is_filled_is_in_it_once() -> None:
    limits = EngineLimits(32, BUDGET, 4096, block_size=4, num_blocks=200)
    scheduler = Scheduler(limits, num_stages=1, max_queued=100, has_prefix_cache=False)
    for owner in ("d1", "d2"):
        scheduler.add(request_of(owner, max_tokens=90))
    run(scheduler, num_steps=3)
    scheduler.add(request_of("p", "0", num_tokens=52, max_tokens=1))
    run(scheduler)
    scheduler.add(request_of("v1", num_tokens=8, max_tokens=4, priority=2))
    run(scheduler, num_steps=3)
    scheduler.add(request_of("p", num_tokens=60, max_tokens=4))
    run(scheduler)
    scheduler.add(request_of("v2", num_tokens=26, max_tokens=90))
    run(scheduler, num_steps=5)
    assert [one.request_id for one in scheduler._running] == ["d1", "d2", "p", "v2", "v1"]
    assert [one.num_unscheduled for one in scheduler._running] == [1, 1, 3, 1, 4]
    scheduler._blocks.grow([], limits.block_size * scheduler.num_free_blocks, 0)  # others take all that is left
    scheduler._waiting._num_passed = TURNS - 1  # the next to start is one of a later priority
    step = scheduler.schedule()
    assert step is not None
    assert scheduler.num_preemptions == 2, "d1 has taken the blocks of v1 and v2, and v1 has started before p again"
    assert len(set(step.slot_rows)) == len(step.slot_rows) == 4


def test_no_more_prompts_are_under_way_than_have_room_for_all_their_tokens() -> None:
    num_chunks, num_prompts = 16, 3
    num_blocks = num_prompts * (num_chunks * BUDGET // 4 + 2)  # their outputs included
    scheduler = scheduler_of(max_num_seqs=20, num_blocks=num_blocks)
    for number in range(20):
        scheduler.add(request_of(f"owner {number}", num_tokens=num_chunks * BUDGET, max_tokens=2))
    most_at_once = 0
    while scheduler.has_work:
        run(scheduler)
        most_at_once = max(most_at_once, sum(one.num_unscheduled > 1 for one in scheduler._running))
        scheduler.check()
    assert scheduler.num_preemptions == 0
    assert most_at_once == num_prompts, "with blocks to spare they run side by side"
