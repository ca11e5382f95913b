"""One fault under load, and what it did."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.chaos.event_stream import Answer
from tests.chaos.faults import Fault
from tests.chaos.faulty_cluster import FaultyCluster
from tests.chaos.recovery import Watch, processes_left, what_is_held
from tests.chaos.stream_clients import StreamClients
from tests.chaos.table import Row, count_changed, kinds_of

_FAULT_S = 6.0  # after the load has begun
_LATEST_FAULT = 0.3  # of an undisturbed run: a quick machine is not done before
_LEAVE_S = 10.0  # what has been replaced may take to go


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The answers of a run without a fault."""

    answers: list[Answer]
    elapsed_s: float


async def run_undisturbed(cluster: FaultyCluster, chats: Sequence[dict[str, Any]], limit_s: float) -> Undisturbed:
    """What the chats give when nothing breaks."""
    began_s = time.monotonic()
    answers = await StreamClients(cluster.url, began_s + limit_s).run(chats)
    return Undisturbed(answers, time.monotonic() - began_s)


async def run_fault(
    cluster: FaultyCluster, fault: Fault, chats: Sequence[dict[str, Any]], undisturbed: Undisturbed, limit_s: float
) -> Row:
    """Bring one fault in while the clients stream; the row ends after `limit_s` and what is bounded by itself."""
    before = await asyncio.to_thread(cluster.processes)
    give_up_s = time.monotonic() + limit_s
    clients = StreamClients(cluster.url, give_up_s)
    load = asyncio.create_task(clients.run(chats, fault.min_load_s))
    await asyncio.sleep(min(_FAULT_S, _LATEST_FAULT * undisturbed.elapsed_s))
    num_open, fault_s = clients.num_open, time.monotonic()
    watch = Watch(cluster, fault_s, give_up_s, load.done)
    try:
        effect = await asyncio.to_thread(fault.inflict, cluster)
        healthy_s, all_copies_s, answers = await asyncio.gather(
            asyncio.to_thread(watch.seconds_to_health), asyncio.to_thread(watch.seconds_to_all_copies), load
        )
    except LookupError as error:
        return not_run(fault, str(error))
    finally:
        watch.stop()
        load.cancel()
    right = [undisturbed.answers]
    if fault.changes_weights:
        right.append((await run_undisturbed(cluster, chats, limit_s)).answers)
    row = replace(
        _row_of_answers(fault, answers, right),
        num_open_at_fault=num_open,
        healthy_s=healthy_s,
        all_copies_s=all_copies_s,
        note=effect.note,
    )
    return await _with_what_is_left(row, cluster, before, fault.added, effect.victims)


def not_run(fault: Fault, why: str) -> Row:
    """The row of a fault that did not come about."""
    return Row(fault.name, fault.layout.num_copies, fault.must_not_fail, note=why)


def _row_of_answers(fault: Fault, answers: Sequence[Answer], right: Sequence[Sequence[Answer]]) -> Row:
    return Row(
        fault.name,
        fault.layout.num_copies,
        fault.must_not_fail,
        num_requests=len(answers),
        num_failed=sum(answer.failure is not None for answer in answers),
        failures=kinds_of(answers),
        num_changed=count_changed(answers, *right),
        longest_pause_s=max(answer.longest_pause_s for answer in answers),
    )


async def _with_what_is_left(
    row: Row,
    cluster: FaultyCluster,
    before: Mapping[str, set[int]],
    added: Mapping[str, int],
    victims: Collection[int],
) -> Row:
    await asyncio.sleep(_LEAVE_S)
    now = await asyncio.to_thread(cluster.processes)
    held = await asyncio.to_thread(what_is_held, cluster)
    return replace(
        row,
        num_processes_left=len(processes_left(before, now, added, victims)),
        num_blocks_held=None if held is None else held.num_blocks,
        num_requests_held=None if held is None else held.num_requests,
    )
