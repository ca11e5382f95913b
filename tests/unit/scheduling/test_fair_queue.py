"""Owners that share a copy."""

from collections import Counter

from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence, sequences_of
from serve_app.types.generation import GenerateRequest, Progress, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepOutput


def request_of(owner: str, name: str = "", num_tokens: int = 4, **more: object) -> GenerateRequest:
    params = SamplingParams(max_tokens=8, seed=0, ignore_eos=True)
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
