"""Owners that share a copy."""

from collections import Counter

import pytest

from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence, SequenceState, sequences_of
from serve_app.types.generation import GenerateRequest, Progress, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepOutput


def request_of(owner: str, name: str = "", num_tokens: int = 4, max_tokens: int = 8, **more: object) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=True)
    return GenerateRequest(f"{owner}{name}", [1] * num_tokens, params, owner=owner, **more)  # type: ignore[arg-type]


def waiting(owner: str, name: str = "", num_tokens: int = 4) -> list[Sequence]:
    return sequences_of(request_of(owner, name, num_tokens), frozenset())


def taken(queue: FairQueue, count: int) -> list[str]:
    """Who is served, each charged for its prompt."""
    names = []
    for _ in range(count):
        sequence = queue.take()
        queue.charge(sequence.owner, sequence.num_prompt_tokens)
        names.append(sequence.request_id)
    return names


def test_one_owner_is_served_in_order() -> None:
    queue = FairQueue()
    for name in "123":
        queue.add(waiting("a", name))
    assert taken(queue, 3) == ["a1", "a2", "a3"]
    assert queue.head is None
    assert len(queue) == 0


def test_who_comes_late_does_not_wait_behind_all_of_another() -> None:
    queue = FairQueue()
    for name in "1234":
        queue.add(waiting("a", name))
    assert taken(queue, 2) == ["a1", "a2"]
    queue.add(waiting("b"))
    assert taken(queue, 3) == ["b", "a3", "a4"]


def test_turns_go_by_tokens_and_not_by_requests() -> None:
    queue = FairQueue()
    for name in "1234":
        queue.add(waiting("a", name, num_tokens=30))
        queue.add(waiting("b", name, num_tokens=10))
    assert Counter(name[0] for name in taken(queue, 4)) == {"a": 1, "b": 3}


def test_what_was_drawn_counts_too() -> None:
    queue = FairQueue()
    queue.add(waiting("a", "1"))
    queue.add(waiting("b", "1"))
    assert taken(queue, 2) == ["a1", "b1"]
    queue.charge("a", 100)
    for name in "234":
        queue.add(waiting("a", name))
        queue.add(waiting("b", name))
    assert taken(queue, 4) == ["b2", "b3", "b4", "a2"]


def test_nobody_saves_turns_up_by_staying_away() -> None:
    queue = FairQueue()
    queue.add(waiting("idle"))
    taken(queue, 1)
    for number in range(50):
        queue.add(waiting("busy", str(number)))
        taken(queue, 1)
    for name in "123":
        queue.add(waiting("idle", name))
        queue.add(waiting("busy", name))
    assert Counter(name[0] for name in taken(queue, 6)) == {"i": 3, "b": 3}


def test_what_has_run_before_comes_first() -> None:
    queue = FairQueue()
    queue.add(waiting("a"))
    (first,), (second,), (third,) = waiting("b", "1"), waiting("b", "2"), waiting("c")
    queue.add_resumed([first])
    queue.add_resumed([third])
    queue.put_back(second)
    assert [one.request_id for one in queue] == ["b2", "b1", "c", "a"]
    queue.remove(first)
    assert taken(queue, 3) == ["b2", "c", "a"]


def test_who_makes_way_is_served_after_the_one_it_made_way_for_though_that_owner_has_had_more() -> None:
    queue = FairQueue()
    queue.add(waiting("b", "1", num_tokens=40))
    assert taken(queue, 1) == ["b1"]
    (running,) = waiting("a", "1", num_tokens=2)
    queue.add([running])
    assert taken(queue, 1) == ["a1"]
    queue.add(waiting("b", "2"))
    queue.stand_back(running)
    assert taken(queue, 2) == ["b2", "a1"]


def test_owners_that_have_left_are_forgotten() -> None:
    queue = FairQueue()
    for number in range(5000):
        queue.add(waiting(f"owner-{number}"))
        taken(queue, 1)
    assert len(queue._num_used) < 1100


def scheduler_of(max_num_seqs: int, num_blocks: int = 400) -> Scheduler:
    limits = EngineLimits(max_num_seqs, 64, 64, block_size=4, num_blocks=num_blocks)
    return Scheduler(limits, num_stages=1, max_queued=1000, overlaps_steps=True)


def run_step(scheduler: Scheduler, step_id: int) -> list[str]:
    """The oldest step comes back; who has got a token."""
    step = scheduler._in_flight[step_id]
    news = scheduler.update(StepOutput(step_id, [7] * sum(step.samples)))
    return [one.sequence.request_id for one in news]


STEP_S = 0.022


def first_token_after_s(*, share_done: float) -> float:
    """From the arrival of b, when so much of a step has been computed, to its first token; steps follow each other."""
    scheduler = scheduler_of(max_num_seqs=3)
    for number in range(10):
        scheduler.add(request_of("a", str(number)))
    ends: dict[int, float] = {}  # of steps sent, by the shards' clock
    now_s = idle_from_s = 0.0

    def pump() -> None:
        nonlocal idle_from_s
        while (step := scheduler.schedule(now_s)) is not None:
            idle_from_s = max(idle_from_s, now_s) + STEP_S
            ends[step.step_id] = idle_from_s

    pump()
    arrived_s = 4 * STEP_S + share_done * STEP_S
    has_arrived = False
    for step_id in range(20):
        if not has_arrived and ends[step_id] > arrived_s:
            now_s, has_arrived = arrived_s, True
            scheduler.add(request_of("b"))
            pump()
        now_s = ends[step_id]
        if "b" in run_step(scheduler, step_id):
            return now_s - arrived_s
        pump()
    raise AssertionError("b has no token")


@pytest.mark.parametrize("share_done", [0.01, 0.5, 0.99])
def test_a_newcomer_waits_for_the_steps_that_are_sent_and_is_in_the_next_one(share_done: float) -> None:
    assert first_token_after_s(share_done=share_done) == pytest.approx((3 - share_done) * STEP_S)


def made_way() -> tuple[Scheduler, Sequence]:
    """Two places of a, the later of which b has taken; a step that had it is in flight."""
    scheduler = scheduler_of(max_num_seqs=2)
    _first, latest = (scheduler.add(request_of("a", name, max_tokens=3))[0] for name in "01")
    assert scheduler.schedule() is not None
    run_step(scheduler, 0)
    assert scheduler.schedule() is not None
    scheduler.add(request_of("b"))
    step = scheduler.schedule()
    assert step is not None
    assert len(step.starts) == 1
    assert (latest.num_preemptions, latest.num_steps_in_flight, latest.slot_row) == (1, 1, -1)
    return scheduler, latest


def test_what_a_step_in_flight_brings_to_one_that_has_made_way_is_taken_in() -> None:
    scheduler, latest = made_way()
    assert run_step(scheduler, 1) == ["a0", "a1"]
    assert (latest.state, latest.num_outputs) == (SequenceState.WAITING, 2)
    while scheduler.has_work:
        while scheduler.schedule() is not None:
            pass
        run_step(scheduler, next(iter(scheduler._in_flight)))
    assert latest.num_outputs == 3
    scheduler.check()


def test_one_that_has_made_way_may_end_with_the_step_in_flight() -> None:
    scheduler, latest = made_way()
    latest.end_token_ids = frozenset({7})
    assert run_step(scheduler, 1) == ["a0", "a1"]
    assert (latest.finish_reason, latest.num_outputs) == ("stop", 2)
    assert scheduler.num_waiting == 0
    scheduler.check()


def test_a_draw_of_one_that_has_made_way_that_is_no_number_ends_it_and_nobody_finds_its_blocks() -> None:
    scheduler, latest = made_way()
    assert len(scheduler._blocks.find(latest.block_keys)) == 1
    news, lost = scheduler.update(StepOutput(1, [7, -1]))
    assert (news.sequence.request_id, lost.sequence, lost.chunk.finish_reason) == ("a0", latest, "error")
    assert scheduler._blocks.find(latest.block_keys) == []


def test_an_owner_that_runs_nothing_gets_a_place_though_all_are_taken() -> None:
    scheduler = scheduler_of(max_num_seqs=3)
    for number in range(10):
        scheduler.add(request_of("a", str(number)))
    assert scheduler.schedule() is not None
    assert scheduler.schedule() is not None
    scheduler.add(request_of("b"))
    got: list[str] = []
    for step_id in range(4):
        got += run_step(scheduler, step_id)
        while scheduler.schedule() is not None:
            pass
    assert "b" in got
    assert [one.owner for one in scheduler._running] == ["a", "a", "b"]
    assert scheduler.num_preemptions == 1


def test_an_owner_with_one_sequence_keeps_it() -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    for owner in "abc":
        scheduler.add(request_of(owner))
    for step_id in range(4):
        while scheduler.schedule() is not None:
            pass
        run_step(scheduler, step_id)
    assert [one.owner for one in scheduler._running] == ["a", "b"]
    assert scheduler.num_preemptions == 0


def test_a_resumed_request_goes_ahead_of_a_full_queue() -> None:
    scheduler = scheduler_of(max_num_seqs=1)
    for number in range(1000):
        scheduler.add(request_of("a", str(number)))
    (resumed,) = scheduler.add(request_of("b", progress=Progress([[5, 6]], [False])))
    step = scheduler.schedule()
    assert step is not None
    assert scheduler._running == [resumed]
    assert step.token_ids == [1, 1, 1, 1, 5, 6]
