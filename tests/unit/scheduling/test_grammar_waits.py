"""Sequences whose grammars are being compiled wait outside the batch, and nobody with them."""

from dataclasses import replace

import pytest

from serve_app.errors import QueueFullError
from serve_app.scheduling.grammar_waits import MAX_UNUSED, GrammarWaits
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import GenerateRequest, Progress, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import NO_MATCHER, NOTHING_FITS, GrammarChange
from tests.scheduler_driver import EOS, answered, scheduled

LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, block_size=4, num_blocks=64)


def scheduler_of(num_stages: int = 1, max_queued: int = 8, num_blocks: int = 64) -> Scheduler:
    return Scheduler(
        replace(LIMITS, num_blocks=num_blocks),
        num_stages=num_stages,
        max_queued=max_queued,
        eos_token_ids=frozenset({EOS}),
        awaits_grammars=True,
    )


def waits_of(scheduler: Scheduler) -> GrammarWaits:
    assert scheduler.grammars is not None
    return scheduler.grammars


def held(
    name: str, grammar: str | None = "g", max_tokens: int = 8, num_choices: int = 1, **more: object
) -> GenerateRequest:
    request = GenerateRequest(name, [5, 6, 7], SamplingParams(max_tokens, seed=0, grammar=grammar), num_choices)
    return replace(request, **more)  # type: ignore[arg-type]


def in_step(scheduler: Scheduler) -> set[str]:
    """Who is in the next step, which is answered."""
    step = scheduled(scheduler)
    names = {one.request_id for one in scheduler._in_flight[step.step_id].sequences}
    answered(scheduler, step)
    return names


@pytest.mark.parametrize("num_stages", [1, 2])
def test_the_others_go_on_and_newcomers_start_while_a_grammar_is_compiled(num_stages: int) -> None:
    scheduler = scheduler_of(num_stages)
    scheduler.add(held("runs", None))
    assert in_step(scheduler) == {"runs"}
    scheduler.add(held("waits"))
    scheduler.add(held("came later", None))
    assert waits_of(scheduler).has_changes
    assert waits_of(scheduler).take_changes() == [GrammarChange(0, "g")]
    assert not waits_of(scheduler).has_changes
    assert scheduler.num_waiting == 2
    seen = [in_step(scheduler) for _ in range(4)]
    assert set().union(*seen) == {"runs", "came later"}
    assert (scheduler.waits_for, scheduler.num_waiting, scheduler.has_work) == ("grammar", 1, True)
    waits_of(scheduler).take_ready(0)
    assert scheduler.waits_for == "step"
    assert "waits" in set().union(*(in_step(scheduler) for _ in range(num_stages)))
    assert scheduler.num_waiting == 0


def test_nothing_runs_where_all_wait_and_a_known_grammar_waits_for_nothing() -> None:
    scheduler = scheduler_of()
    scheduler.add(held("a", num_choices=2))
    scheduler.add(held("b"))
    assert scheduler.schedule() is None
    assert len(waits_of(scheduler).take_changes()) == 1, "one grammar is compiled once"
    waits_of(scheduler).take_ready(0)
    scheduler.add(held("c"))
    assert in_step(scheduler) == {"a", "b", "c"}
    assert waits_of(scheduler).take_changes() == []


def test_those_that_wait_count_as_queued_and_can_be_given_up() -> None:
    scheduler = scheduler_of(max_queued=3)
    first, second = scheduler.add(held("a", num_choices=2))
    scheduler.add(held("b", "other", time_left_s=1.0), now_s=10.0)
    with pytest.raises(QueueFullError):
        scheduler.add(held("c", None))
    scheduler.abort(first)
    assert [one.request_id for one in scheduler.expire(11.5)] == ["b"]
    waits_of(scheduler).take_ready(0)
    waits_of(scheduler).take_ready(1)
    assert (first.finish_reason, second.finish_reason, scheduler.num_waiting) == ("abort", None, 1)
    assert in_step(scheduler) == {"a"}
    scheduler.add(held("d", "third"))
    scheduler.abort_all()
    assert not scheduler.has_work
    scheduler.check()


def test_what_another_copy_has_run_goes_before_newcomers_when_its_grammar_is_there() -> None:
    scheduler = scheduler_of()
    for number in range(4):
        scheduler.add(held(f"newcomer {number}", None))
    scheduler.add(held("resumed", progress=Progress([[8, 9]], [False])))
    assert next(iter(waits_of(scheduler))).request_id == "resumed"
    waits_of(scheduler).take_ready(0)
    step = scheduled(scheduler)
    assert scheduler._in_flight[step.step_id].sequences[0].request_id == "resumed"
    assert step.starts[0].history_token_ids == [8, 9]


def test_a_pre_empted_sequence_keeps_its_grammar() -> None:
    scheduler = scheduler_of(num_blocks=6)
    waits = waits_of(scheduler)
    scheduler.add(held("a", None, max_tokens=16))
    scheduler.add(held("b", max_tokens=16))
    waits.take_ready(0)
    while scheduler.num_preemptions == 0:
        in_step(scheduler)
    for number in range(MAX_UNUSED + 1):
        use_once(waits, f"other {number}")
    assert all(change.number != 0 for change in waits.take_changes() if change.text is None)
    while scheduler.has_work:
        in_step(scheduler)
    scheduler.check()


def test_the_grammars_that_nobody_uses_are_forgotten_in_their_order() -> None:
    scheduler = scheduler_of()
    waits = waits_of(scheduler)
    for number in range(MAX_UNUSED):
        use_once(waits, f"g{number}")
    use_once(waits, "g0")
    waits.take_changes()
    use_once(waits, "new")
    assert waits.take_changes() == [GrammarChange(MAX_UNUSED, "new"), GrammarChange(1, None)]
    waits.take_ready(1)  # it was compiled all the same
    use_once(waits, "g1")
    assert waits.take_changes()[0] == GrammarChange(MAX_UNUSED + 1, "g1")


@pytest.mark.parametrize(("token_id", "is_request_at_fault"), [(NOTHING_FITS, True), (NO_MATCHER, False)])
def test_a_request_is_at_fault_for_what_its_grammar_leads_to_alone(token_id: int, is_request_at_fault: bool) -> None:
    scheduler = scheduler_of()
    scheduler.add(held("a"))
    waits_of(scheduler).take_ready(0)
    (end,) = answered(scheduler, scheduled(scheduler), token_id)
    assert (end.chunk.finish_reason, end.chunk.is_request_at_fault) == ("error", is_request_at_fault)
    assert (end.chunk.error is not None) == is_request_at_fault
    scheduler.check()


def use_once(waits: GrammarWaits, text: str) -> None:
    """A request comes and is given up."""
    params = SamplingParams(8, seed=0, grammar=text)
    sequence = Sequence("x", 0, params, frozenset(), num_prompt_tokens=1, token_ids=[1])
    waits.hold([sequence])
    waits.remove(sequence)
    waits.release(sequence)
