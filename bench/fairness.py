"""How long a client with a single request waits while another has a hundred: the time to its first token.

The demo model behind a Gateway without keys: clients are told apart by their hosts, here two addresses of loopback. B
asks twice a second: alone, while A's hundred requests from another host run and wait, and once while they come from
B's own. A is a process of its own, so that B's clock does not wait until A's tokens are read.
`--record` adds the table to bench/results.md.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import httpx

from bench.results import describe_machine, record
from bench.serving import ROOT, serving

MODEL_ARGS = {
    "name": "bench",
    "source": str(ROOT / "examples" / "demo_model" / "model"),
    "max_model_len": 1024,
    "engine": {"max_num_seqs": 16, "max_queued": 1000},
}
NUM_OF_A = 100
NUM_OF_B = 8
OUTPUTS_OF_A, OUTPUTS_OF_B = 60, 8
HOST_OF_A, HOST_OF_B = "127.0.0.1", "127.0.0.2"
PAUSE_S = 0.5  # between two of B's
LEAD_S = 1.0  # of A's
MAX_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """When a request's tokens came, in seconds after it was sent."""

    token_s: list[float]

    @property
    def first_s(self) -> float:
        """To the first token."""
        return self.token_s[0]

    @property
    def step_s(self) -> float:
        """From one token to the next, on the average: a busy reader gets several at once."""
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1)


async def ask(client: httpx.AsyncClient, url: str, number: int, num_outputs: int) -> Answer:
    """One streamed completion of a prompt that no other request has."""
    body = {
        "model": "bench",
        "prompt": f"{number} plus {number * 7} = " * 8,
        "max_tokens": num_outputs,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "seed": number,
    }
    began_s, token_s = time.perf_counter(), list[float]()
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                token_s.append(time.perf_counter() - began_s)
    return Answer(token_s)


def client_from(host: str) -> httpx.AsyncClient:
    """A client that calls from one address."""
    transport = httpx.AsyncHTTPTransport(local_address=host, limits=httpx.Limits(max_connections=None))
    return httpx.AsyncClient(transport=transport, timeout=600)


async def one_by_one(url: str, first_number: int, count: int = NUM_OF_B) -> list[Answer]:
    """B's requests."""
    answers = []
    async with client_from(HOST_OF_B) as client:
        for number in range(first_number, first_number + count):
            answers.append(await ask(client, url, number, OUTPUTS_OF_B))
            await asyncio.sleep(PAUSE_S)
    return answers


async def beside_a(url: str, host_of_a: str, first_number: int, count: int) -> tuple[list[Answer], float]:
    """B's requests while A's run and wait, and A's seconds between two tokens."""
    with _client_a(url, host_of_a, first_number) as of_a:
        await asyncio.to_thread(of_a.recv)
        answers = await one_by_one(url, first_number + NUM_OF_A, count)
        assert count == 1 or not of_a.poll(), "A was done before B; give it more"
        step_s: float = await asyncio.to_thread(of_a.recv)
    return answers, step_s


@contextmanager
def _client_a(url: str, host: str, first_number: int) -> Iterator[Connection]:
    """What A says: that it is under way, and in the end its seconds between two tokens."""
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run_a, args=(url, host, first_number, writer))
    process.start()
    writer.close()  # the process has its own: without it the reader would never see the end of a lost one
    try:
        yield reader
    finally:
        process.join()


def _run_a(url: str, host: str, first_number: int, writer: Connection) -> None:
    asyncio.run(_ask_all(url, host, first_number, writer))


async def _ask_all(url: str, host: str, first_number: int, writer: Connection) -> None:
    async with client_from(host) as client:
        numbers = range(first_number, first_number + NUM_OF_A)
        answers = [asyncio.create_task(ask(client, url, number, OUTPUTS_OF_A)) for number in numbers]
        await asyncio.sleep(LEAD_S)
        writer.send("under way")
        writer.send(median(answer.step_s for answer in await asyncio.gather(*answers)))


async def measure(url: str) -> tuple[str, bool]:
    """The table, and whether the aim is met."""
    await one_by_one(url, 0)  # warm
    alone = await one_by_one(url, 1000)
    apart, step_s = await beside_a(url, HOST_OF_A, 2000, NUM_OF_B)
    together, _step_s = await beside_a(url, HOST_OF_B, 3000, count=1)
    lines = ["| B's requests | ms to the first token, median | most |", "| --- | --- | --- |"]
    for name, answers in (("alone", alone), ("beside A", apart), ("of A's own host", together)):
        firsts = [1000 * answer.first_s for answer in answers]
        lines.append(f"| {name} | {median(firsts):.0f} | {max(firsts):.0f} |")
    before, beside = (median(answer.first_s for answer in answers) for answers in (alone, apart))
    most_s = MAX_RATIO * before + step_s
    lines += [
        "",
        f"A step takes {1000 * step_s:.0f} ms. Aim: {1000 * most_s:.0f} ms, twice as long as alone and one step.",
    ]
    return "\n".join(lines), beside <= most_s


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    machine = describe_machine()
    with serving("serve_app.app:build_model", MODEL_ARGS, {}) as served:
        table, is_met = asyncio.run(measure(served.url))
    print(table)
    if options.record:
        record("Fair shares", machine, table)
    raise SystemExit(0 if is_met else 1)


if __name__ == "__main__":
    main()
