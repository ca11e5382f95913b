"""Batches are worked to their end: once, whoever dies, whoever else works beside, however long a model is away."""

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from serve_app.gateway.batches.batch_store import CANCEL, LOCK, STATE
from serve_app.gateway.batches.callers import BatchCaller
from serve_app.gateway.batches.file_store import DAY_S, META
from serve_app.gateway.batches.line_calls import LineAnswer
from serve_app.gateway.batches.places import OPEN_OWNER
from tests.batch_calls import Replica, ScriptedLines, becomes, completion, said


def lines_of(num: int) -> list[dict[str, object]]:
    return [completion(f"id-{number}", f"p{number}") for number in range(num)]


async def test_every_request_is_run_once_and_no_more_than_may_be_at_once(tmp_path: Path) -> None:
    replica = Replica(tmp_path, settings={"concurrency": 3})
    batch = replica.add(lines_of(200))
    async with replica.working():
        batch = await replica.until(batch.id)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.usage.total_tokens) == (200, 1000)
    assert sorted(replica.call.prompts) == sorted(f"p{number}" for number in range(200))
    assert replica.call.most_running == 3
    found = replica.results(batch.output_file_id)
    assert found["id-7"]["response"]["body"]["text"] == "p7"
    assert not list(replica.files.places.queue.iterdir())


async def test_batches_share_the_turns(tmp_path: Path) -> None:
    replica = Replica(tmp_path, settings={"concurrency": 2})
    first = replica.add([completion(f"a{number}", f"a{number}") for number in range(100)])
    second = replica.add([completion(f"b{number}", f"b{number}") for number in range(10)])
    async with replica.working():
        await replica.until(second.id)
        assert (replica.batches.describe(OPEN_OWNER, first.id)).status == "in_progress"
        await replica.until(first.id)


async def test_a_worker_that_is_dropped_leaves_nothing_lost_and_nothing_twice(tmp_path: Path) -> None:
    """The first one ends as a killed process does: at once, with requests under way and half a line written."""
    held = ScriptedLines(holds=lambda prompt: prompt in ("p30", "p31"))
    first = Replica(tmp_path, held, settings={"concurrency": 2})
    batch = first.add(lines_of(60))
    async with first.working():
        await becomes(lambda: held.num_running == 2 and "p31" in held.prompts)
    state = first.batches.load(OPEN_OWNER, batch.id)
    assert state.batch.status == "in_progress"
    output = first.files.place_of(OPEN_OWNER, state.output_id)
    num_written = len(output.read_bytes().splitlines())
    with output.open("ab") as file:
        file.write(b'{"id":"batch_req_x","custom_id":"id-31","response":{"status_co')
    second = Replica(tmp_path)
    async with second.working():
        batch = await second.until(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts.completed == 60
    assert num_written == 30
    assert Counter(held.prompts + second.call.prompts) == Counter(
        [*(f"p{number}" for number in range(60)), "p30", "p31"]
    )
    assert set(second.results(batch.output_file_id)) == {f"id-{number}" for number in range(60)}


async def test_two_replicas_do_not_work_one_batch(tmp_path: Path) -> None:
    replicas = [Replica(tmp_path), Replica(tmp_path)]
    ids = [replicas[0].add(lines_of(20)).id for _ in range(6)]
    async with replicas[0].working(), replicas[1].working():
        for batch_id in ids:
            assert (await replicas[1].until(batch_id)).request_counts.completed == 20
    prompts = Counter(replicas[0].call.prompts + replicas[1].call.prompts)
    assert prompts == Counter({f"p{number}": 6 for number in range(20)})


async def test_a_batch_is_taken_over_from_a_replica_that_drains(tmp_path: Path) -> None:
    is_draining = False
    held = ScriptedLines(holds=lambda _prompt: True)
    leaving, staying = Replica(tmp_path, held, is_draining=lambda: is_draining), Replica(tmp_path)
    batch = leaving.add(lines_of(5))
    async with leaving.working():
        await leaving.until(batch.id, "in_progress")
        async with staying.working():
            await asyncio.sleep(0.03)
            assert staying.call.prompts == []
            is_draining = True
            assert (await staying.until(batch.id)).request_counts.completed == 5
    assert held.num_running == 0


async def test_what_can_be_tried_again_is(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def answer(prompt: str) -> LineAnswer:
        asked[prompt] += 1
        return said(prompt, 429, retry_after_s=7.0) if prompt == "p1" and asked[prompt] < 4 else said(prompt)

    replica = Replica(tmp_path, ScriptedLines(answer), settings={"concurrency": 1})
    batch = replica.add(lines_of(3))
    async with replica.working():
        batch = await replica.until(batch.id)
    assert batch.request_counts.completed == 3
    assert asked == Counter({"p0": 1, "p1": 4, "p2": 1})
    assert len(replica.waits_s) == 3
    assert all(7.0 <= wait_s <= 7.0 * 1.25 for wait_s in replica.waits_s)


@pytest.mark.parametrize(("num_gone", "status"), [(3, 200), (1000, 404)])
async def test_a_model_that_was_there_is_waited_for_ten_minutes(tmp_path: Path, num_gone: int, status: int) -> None:
    replica = Replica(tmp_path, settings={"concurrency": 1})
    replica.call.answer = lambda prompt: said(prompt, 404 if len(replica.call.prompts) <= num_gone else 200)
    batch = replica.add(lines_of(4))
    async with replica.working():
        batch = await replica.until(batch.id)
    found = replica.results(batch.output_file_id if status == 200 else batch.error_file_id)
    assert [line["response"]["status_code"] for line in found.values()] == [status] * 4
    assert len(replica.waits_s) >= num_gone if status == 200 else sum(replica.waits_s) == pytest.approx(640, abs=50)


async def test_a_batch_that_somebody_has_broken_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica(tmp_path)
    broken, good = replica.add(lines_of(2)), replica.add(lines_of(2))
    (replica.files.places.batch(OPEN_OWNER, broken.id) / STATE).write_text("{")
    async with replica.working():
        assert (await replica.until(good.id)).status == "completed"
    assert f"batch laid down id={broken.id}" in caplog.text
    assert "not what this server writes" in caplog.text


async def test_what_fails_for_good_is_in_the_error_file(tmp_path: Path) -> None:
    def answer(prompt: str) -> LineAnswer:
        if prompt == "p2":
            return LineAnswer(200, b"not JSON", "req_2")
        return said(prompt, 400 if prompt == "p1" else 200)

    replica = Replica(tmp_path, ScriptedLines(answer))
    batch = replica.add(lines_of(3))
    async with replica.working():
        batch = await replica.until(batch.id)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 1, 2)
    errors = replica.results(batch.error_file_id)
    assert errors["id-1"]["response"]["status_code"] == 400
    assert errors["id-2"]["error"]["code"] == "invalid_answer"


async def test_a_batch_expires_with_an_entry_for_each_request_that_was_not_run(tmp_path: Path) -> None:
    now_s = 1_000_000_000.0
    replica = Replica(
        tmp_path, ScriptedLines(holds=lambda prompt: prompt != "p0"), {"concurrency": 2}, clock=lambda: now_s
    )
    batch = replica.add(lines_of(5))
    async with replica.working():
        await becomes(lambda: replica.num_completed(batch.id) == 1)
        now_s += DAY_S
        batch = await replica.until(batch.id)
    assert (batch.status, batch.expired_at) == ("expired", int(now_s))
    assert set(replica.results(batch.output_file_id)) == {"id-0"}
    errors = replica.results(batch.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}
    assert len(errors) == 4
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 4)


async def test_what_was_answered_before_a_batch_is_cancelled_is_kept(tmp_path: Path) -> None:
    replica = Replica(tmp_path, ScriptedLines(holds=lambda prompt: prompt != "p0"))
    batch = replica.add(lines_of(30))
    async with replica.working():
        await becomes(lambda: replica.num_completed(batch.id) == 1)
        assert replica.batches.cancel(OPEN_OWNER, batch.id).status == "cancelling"
        batch = await replica.until(batch.id)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert set(replica.results(batch.output_file_id)) == {"id-0"}
    assert batch.error_file_id is None


@pytest.mark.parametrize("status", ["finalizing", "cancelling"])
async def test_a_batch_that_was_being_finished_is_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    """A process may die between any two writes; finishing is done again from its beginning."""
    replica = Replica(tmp_path, ScriptedLines(holds=lambda prompt: status == "cancelling" and prompt == "p3"))
    batch = replica.add(lines_of(4))
    state = replica.batches.load(OPEN_OWNER, batch.id)
    in_the_way = replica.files.place_of(OPEN_OWNER, state.output_id).with_name(META)
    in_the_way.mkdir(parents=True)
    async with replica.working():
        if status == "cancelling":
            await becomes(lambda: replica.num_completed(batch.id) == 3)
            replica.batches.cancel(OPEN_OWNER, batch.id)
        await becomes(lambda: "batch laid down" in caplog.text)
    assert replica.batches.load(OPEN_OWNER, batch.id).batch.status == status
    in_the_way.rmdir()
    later = Replica(tmp_path)
    async with later.working():
        batch = await later.until(batch.id)
    assert batch.status == ("completed" if status == "finalizing" else "cancelled")
    assert later.call.prompts == []
    assert len(later.results(batch.output_file_id)) == (4 if status == "finalizing" else 3)


async def test_requests_that_somebody_waits_for_go_first(tmp_path: Path) -> None:
    num_waiting = 5
    replica = Replica(tmp_path, num_waiting=lambda _model: num_waiting)
    batch = replica.add(lines_of(3))
    async with replica.working():
        await replica.until(batch.id, "in_progress")
        await becomes(lambda: len(replica.waits_s) >= 5)
        assert replica.call.prompts == []
        num_waiting = 0
        assert (await replica.until(batch.id)).request_counts.completed == 3


async def test_a_batch_whose_key_is_gone_waits_for_it(tmp_path: Path) -> None:
    caller: BatchCaller | None = BatchCaller(None)
    held = ScriptedLines(holds=lambda _prompt: caller is None)

    def answer(prompt: str) -> LineAnswer:
        nonlocal caller
        caller = None if prompt == "p1" and held.prompts.count("p1") == 1 else caller
        return said(prompt)

    held.answer = answer
    replica = Replica(tmp_path, held, {"concurrency": 1}, caller_of=lambda _owner: caller)
    batch = replica.add(lines_of(4))
    async with replica.working():
        await becomes(lambda: caller is None and not _is_locked(replica, batch.id))
        assert held.prompts == ["p0", "p1"]
        assert replica.batches.describe(OPEN_OWNER, batch.id).status == "in_progress"
        caller = BatchCaller(None)
        assert (await replica.until(batch.id)).request_counts.completed == 4


def _is_locked(replica: Replica, batch_id: str) -> bool:
    queued = [one for one in replica.batches.queued() if one.batch_id == batch_id]
    claim = replica.batches.claim(queued[0])
    if claim is not None:
        claim.release()
    return claim is None


async def test_a_disk_that_fails_lays_one_batch_down_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica(tmp_path)
    broken, good = replica.add(lines_of(2)), replica.add(lines_of(2))
    state = replica.batches.load(OPEN_OWNER, broken.id)
    replica.files.place_of(OPEN_OWNER, state.output_id).parent.write_text("a file where a folder is to be")
    async with replica.working():
        assert (await replica.until(good.id)).status == "completed"
    assert replica.batches.describe(OPEN_OWNER, broken.id).status == "in_progress"
    assert "batch laid down" in caplog.text


def test_locks_and_markers_are_files_of_their_batch(tmp_path: Path) -> None:
    replica = Replica(tmp_path)
    batch = replica.add(lines_of(1))
    [queued] = replica.batches.queued()
    claim = replica.batches.claim(queued)
    assert claim is not None
    assert replica.batches.claim(queued) is None
    replica.batches.cancel(OPEN_OWNER, batch.id)
    assert {LOCK, CANCEL} <= set(os.listdir(claim.folder))
    claim.release()
    again = replica.batches.claim(queued)
    assert again is not None
    again.release()
    replica.threads.close()
