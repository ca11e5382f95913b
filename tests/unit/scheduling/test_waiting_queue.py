"""Who is served next when requests have priorities."""

from collections import Counter

import pytest

from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence, sequences_of
from serve_app.scheduling.waiting_queue import TURNS, WaitingQueue
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepOutput


def request_of(
    name: str, priority: int = 0, owner: str = "", num_tokens: int = 4, max_tokens: int = 8
) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=True)
    prompt = [sum(map(ord, name))] * num_tokens  # no two share blocks
    return GenerateRequest(name, prompt, params, owner=owner, priority=priority)


def waiting(name: str, priority: int = 0, owner: str = "") -> list[Sequence]:
    return sequences_of(request_of(name, priority, owner), frozenset())


def taken(queue: WaitingQueue, count: int) -> list[str]:
    """Who is served, each charged for its prompt."""
    names = []
    for _ in range(count):
        sequence = queue.take()
        queue.charge(sequence, sequence.num_prompt_tokens)
        names.append(sequence.request_id)
    return names


def test_the_lowest_number_comes_first_and_within_it_who_came_first() -> None:
    queue = WaitingQueue()
    for name, priority in (("late", 3), ("a", 0), ("b", 0), ("urgent", -2)):
        queue.add(waiting(name, priority))
    assert queue.priority == -2
    assert [one.request_id for one in queue] == ["urgent", "a", "b", "late"]
    assert taken(queue, 4) == ["urgent", "a", "b", "late"]
    assert queue.head is None
    assert queue.priority is None
    assert len(queue) == 0


def test_its_length_is_the_number_of_those_that_wait_whatever_becomes_of_them() -> None:
    queue = WaitingQueue()
    a, late, resumed = waiting("a"), waiting("late", 3), waiting("resumed")
    lengths = []
    for change in (
        lambda: queue.add(a),
        lambda: queue.add(late),
        lambda: queue.add_resumed(resumed),
        queue.take,
        lambda: queue.put_back(resumed[0]),
        lambda: queue.remove(late[0]),
        lambda: queue.stand_back(waiting("b", 0, "b")[0]),
    ):
        change()
        assert len(queue) == len(list(queue))
        lengths.append(len(queue))
    assert lengths == [1, 2, 3, 2, 3, 2, 3]


def test_owners_take_turns_within_a_priority() -> None:
    queue = WaitingQueue()
    for number in range(3):
        queue.add(waiting(f"a{number}", 0, "a"))
    queue.add(waiting("b", 0, "b"))
    queue.add(waiting("urgent", -1, "a"))
    assert taken(queue, 3) == ["urgent", "a0", "b"]


def test_one_of_so_many_starts_is_of_those_that_wait_behind() -> None:
    queue = WaitingQueue()
    for number in range(3):
        queue.add(waiting(f"worst {number}", 9))
        queue.add(waiting(f"bad {number}", 5))
    names = []
    for number in range(4 * TURNS):
        queue.add(waiting(f"good {number}"))
        names += taken(queue, 1)
    assert [name for name in names if not name.startswith("good")] == ["worst 0", "bad 0", "worst 1", "bad 1"]
    assert [index for index, name in enumerate(names) if not name.startswith("good")] == [
        TURNS * number - 1 for number in range(1, 5)
    ]


def test_who_is_let_past_has_the_priority_of_those_it_went_before() -> None:
    queue = WaitingQueue()
    (low,) = waiting("low", 9)
    queue.add([low])
    for number in range(TURNS):
        queue.add(waiting(str(number)))
    assert taken(queue, TURNS)[-1] == "low"
    assert low.priority == 0
    queue.put_back(low)
    assert queue.head is low


def test_what_was_preempted_waits_at_the_head_of_its_own_level() -> None:
    queue = WaitingQueue()
    (low,), (good,) = waiting("low", 9), waiting("good")
    queue.add(waiting("other low", 9))
    queue.put_back(low)
    queue.add([good])
    queue.add_resumed(waiting("resumed"))
    assert taken(queue, 4) == ["resumed", "good", "low", "other low"]


def test_ahead_of_a_newcomer_are_better_levels_and_the_turns_of_its_own() -> None:
    queue = WaitingQueue()
    for number in range(3):
        queue.add(waiting(f"a{number}", 0, "a"))
    queue.add(waiting("urgent", -1, "b"))
    queue.add(waiting("low", 1, "b"))
    names = {owner: [one.request_id for one in queue.ahead_of(owner, 0)] for owner in ("a", "b")}
    assert names == {"a": ["urgent", "a0", "a1", "a2"], "b": ["urgent", "a0"]}
    assert [one.request_id for one in queue.ahead_of("c", -5)] == []


def test_levels_that_nobody_waits_in_are_forgotten() -> None:
    queue = WaitingQueue()
    for priority in range(-500, 500):
        queue.add(waiting("one", priority))
        taken(queue, 1)
    assert len(queue._levels) <= 17


def scheduler_of(max_num_seqs: int, num_blocks: int = 400) -> Scheduler:
    limits = EngineLimits(max_num_seqs, 64, 64, block_size=4, num_blocks=num_blocks)
    return Scheduler(limits, num_stages=1, max_queued=1000)


def run_steps(scheduler: Scheduler, count: int) -> None:
    for _ in range(count):
        step = scheduler.schedule()
        assert step is not None
        scheduler.update(StepOutput(step.step_id, [7] * sum(step.samples)))


@pytest.mark.parametrize("num_blocks", [400, 14], ids=["no slot row is left", "no block is left"])
def test_a_better_priority_takes_the_place_of_the_last_of_the_worst(num_blocks: int) -> None:
    scheduler = scheduler_of(3 if num_blocks == 400 else 8, num_blocks)
    for name, priority in (("low 1", 5), ("low 2", 5), ("mid", 1)):
        scheduler.add(request_of(name, priority, num_tokens=10))
    run_steps(scheduler, 2)
    assert [one.request_id for one in scheduler._running] == ["mid", "low 1", "low 2"]
    scheduler.add(request_of("urgent", -1, num_tokens=10))
    run_steps(scheduler, 2)
    assert [one.request_id for one in scheduler._running][:3] == ["urgent", "mid", "low 1"]
    assert scheduler.num_preemptions == 1
    scheduler.add(request_of("equal", 5, owner="", num_tokens=10))
    run_steps(scheduler, 1)
    assert scheduler.num_preemptions == 1, "nobody of the same priority makes way for the same owner"


def test_when_blocks_run_out_the_worst_priority_is_preempted_though_it_came_first() -> None:
    scheduler = scheduler_of(2, num_blocks=6)
    (low,) = scheduler.add(request_of("low", 5, num_tokens=8, max_tokens=12))
    run_steps(scheduler, 1)
    (good,) = scheduler.add(request_of("good", 0, num_tokens=8, max_tokens=12))
    while scheduler.num_preemptions == 0:
        run_steps(scheduler, 1)
    assert (low.num_preemptions, good.num_preemptions) == (1, 0)


def test_low_priorities_end_however_many_better_ones_come() -> None:
    """Pre-empted or not: of 200 that come, two at a time, one place in eight is for others."""
    scheduler = scheduler_of(2, num_blocks=12)
    lows = [scheduler.add(request_of(f"low {number}", 7, max_tokens=4))[0] for number in range(5)]
    num_steps = 0
    while not all(one.is_finished for one in lows):
        while scheduler.num_waiting < 10:
            scheduler.add(request_of("good", 0, max_tokens=4))
        run_steps(scheduler, 1)
        num_steps += 1
    assert num_steps < 5 * TURNS * 4
    counts = Counter(one.finish_reason for one in lows)
    assert counts == {"length": 5}
