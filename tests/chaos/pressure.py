"""More streams at once than a server can run: `python -m tests.chaos.pressure`.

200 and 2,000 chats are sent in the same moment; some clients read slowly, some leave early. Whoever is refused must be
told when to come back, `/health` must answer throughout, and afterwards nothing may be held. Exit status 1: not so.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.chats import make_chats
from tests.chaos.event_stream import EventStream
from tests.chaos.faulty_cluster import FaultyCluster, Layout
from tests.chaos.memory_watch import MemoryWatch
from tests.chaos.recovery import what_is_held

_NUM_EVENTS_OF_LEAVERS = 3
_SLOW_READ_S = 0.2  # between two events
_GIVE_UP_S = 300.0
_HEALTH_S = 10.0
_MEMORY_PERIOD_S = 2.0
_MIB = 1024**2


@dataclass(slots=True)
class Pressed:
    """What came of one load."""

    num_streams: int
    outcomes: dict[str, int] = field(default_factory=dict)
    num_without_retry_after: int = 0  # refusals that do not say when to come back
    num_short: int = 0  # streams that ended, with fewer tokens than were asked for
    elapsed_s: float = 0.0
    slowest_health_s: float = 0.0
    num_unhealthy: int = 0
    memory_mib: tuple[int, int, int] = (0, 0, 0)  # before, most, at the end
    num_blocks_held: int | None = None
    num_requests_held: int | None = None

    @property
    def is_broken(self) -> bool:
        """Whether a promise is broken."""
        kept = {"ended", "left", "429", "503"}
        nothing_held = self.num_blocks_held == self.num_requests_held == 0
        is_told = self.num_without_retry_after == self.num_short == self.num_unhealthy == 0
        return not (set(self.outcomes) <= kept and self.outcomes.get("ended", 0) > 0 and is_told and nothing_held)


class Crowd:
    """Clients that all come at once; every tenth reads slowly, every tenth leaves."""

    def __init__(self, url: str, pressed: Pressed) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._pressed = pressed
        self._outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        """Send all, and wait for the last."""
        chats = make_chats(self._pressed.num_streams)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False, verify=False) as connections:
            await asyncio.gather(*(self._stream(connections, chat, number) for number, chat in enumerate(chats)))
        self._pressed.outcomes = dict(self._outcomes)

    async def _stream(self, connections: httpx.AsyncClient, chat: dict[str, Any], number: int) -> None:
        try:
            async with asyncio.timeout(_GIVE_UP_S), connections.stream("POST", self._url, json=chat) as response:
                outcome = await self._read(response, chat, number)
        except (httpx.TransportError, TimeoutError) as error:
            outcome = type(error).__name__
        self._outcomes[outcome] += 1

    async def _read(self, response: httpx.Response, chat: dict[str, Any], number: int) -> str:
        if response.status_code != 200:
            self._pressed.num_without_retry_after += "retry-after" not in response.headers
            return str(response.status_code)
        stream, num_events = EventStream(time.monotonic()), 0
        async for line in response.aiter_lines():
            if not stream.take(line, time.monotonic()):
                continue
            num_events += 1
            if number % 10 == 1 and num_events == _NUM_EVENTS_OF_LEAVERS:
                return "left"
            if number % 10 == 2:
                await asyncio.sleep(_SLOW_READ_S)
        answer = stream.answer(time.monotonic())
        if answer.failure is None:
            self._pressed.num_short += answer.num_tokens != chat["max_tokens"] * chat.get("n", 1)
        return answer.failure or "ended"


async def press(cluster: FaultyCluster, num_streams: int) -> Pressed:
    """One load, from a server at rest to a server at rest."""
    pressed = Pressed(num_streams)
    memory = MemoryWatch(cluster, _MEMORY_PERIOD_S)
    before = await memory.sample()
    beside = [asyncio.create_task(memory.run()), asyncio.create_task(_watch_health(cluster, pressed))]
    began_s = time.monotonic()
    await Crowd(cluster.url, pressed).run()
    pressed.elapsed_s = round(time.monotonic() - began_s, 1)
    held = await asyncio.to_thread(what_is_held, cluster)
    for task in beside:
        task.cancel()
    at_end = await memory.sample()
    pressed.memory_mib = (before // _MIB, max(memory.samples) // _MIB, at_end // _MIB)
    if held is not None:
        pressed.num_blocks_held, pressed.num_requests_held = held.num_blocks, held.num_requests
    return pressed


async def _watch_health(cluster: FaultyCluster, pressed: Pressed) -> None:
    async with httpx.AsyncClient(timeout=_HEALTH_S, trust_env=False, verify=False) as client:
        while True:
            asked_s, is_healthy = time.monotonic(), False
            with suppress(httpx.TransportError):
                is_healthy = (await client.get(f"{cluster.url}/health")).status_code == 200
            pressed.num_unhealthy += not is_healthy
            pressed.slowest_health_s = round(max(pressed.slowest_health_s, time.monotonic() - asked_s), 2)
            await asyncio.sleep(1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Press, print what came of it as JSON; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[200, 2000], metavar="N", help="default: 200 2000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    options = parser.parse_args(arguments)
    cluster = FaultyCluster(Layout())
    loads: list[Pressed] = []
    try:
        for num_streams in options.streams:
            loads.append(asyncio.run(press(cluster, num_streams)))
            text = json.dumps([asdict(pressed) for pressed in loads], indent=2)
            print(json.dumps(asdict(loads[-1])), file=sys.stderr, flush=True)
            if options.json is not None:
                options.json.write_text(text + "\n")
    finally:
        cluster.end()
    print(text)
    return int(any(pressed.is_broken for pressed in loads))


if __name__ == "__main__":
    sys.exit(main())
