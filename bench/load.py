"""A cheap load generator: streams completions over raw sockets, and reads them only when they have ended.

By hand, against any server that speaks OpenAI's protocol: `python -m bench.load http://127.0.0.1:8000 MODEL WORKLOAD`.
"""

import argparse
import asyncio
import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.generated import WorkItem
from bench.workload import read_workload

_READ_BYTES = 1 << 16


class LoadFailedError(RuntimeError):
    """A request was not answered as it should have been."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What all clients together saw."""

    num_tokens: int
    elapsed_s: float  # from the first request to the last token
    client_cpu_s: float
    first_token_ms: float  # median
    last_first_token_ms: float  # of the request that waited longest


@dataclass(frozen=True, slots=True)
class _Answer:
    num_tokens: int
    first_token_s: float  # after its request


def run_load(url: str, model: str, items: Sequence[WorkItem], num_streams: int | None = None) -> LoadReport:
    """Send all requests at their arrival; with `num_streams`, that many clients take one after the other instead.

    Raises LoadFailedError.
    """
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    answers = asyncio.run(_run(url, model, items, num_streams))
    first_token_ms = [1000 * answer.first_token_s for answer in answers]
    return LoadReport(
        num_tokens=sum(answer.num_tokens for answer in answers),
        elapsed_s=time.perf_counter() - begin_s,
        client_cpu_s=time.process_time() - begin_cpu_s,
        first_token_ms=statistics.median(first_token_ms),
        last_first_token_ms=max(first_token_ms),
    )


async def _run(url: str, model: str, items: Sequence[WorkItem], num_streams: int | None) -> list[_Answer]:
    waiting = iter(items)

    async def work_off() -> list[_Answer]:
        return [await _complete(url, model, item) for item in waiting]

    async def send_on_time(item: WorkItem) -> _Answer:
        await asyncio.sleep(item.arrival_s)
        return await _complete(url, model, item)

    if num_streams is None:
        return list(await asyncio.gather(*(send_on_time(item) for item in items)))
    by_stream = await asyncio.gather(*(work_off() for _ in range(num_streams)))
    return [answer for answers in by_stream for answer in answers]


async def _complete(url: str, model: str, item: WorkItem) -> _Answer:
    """One streamed completion, on a connection of its own."""
    address = urlsplit(url)
    begin_s = time.perf_counter()
    first_token_s: float | None = None
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    pieces: list[bytes] = []
    try:
        writer.write(_request(address.netloc, model, item))
        while piece := await reader.read(_READ_BYTES):
            if first_token_s is None and b"data:" in piece:
                first_token_s = time.perf_counter() - begin_s
            pieces.append(piece)
    finally:
        writer.close()
    num_tokens = _num_tokens(b"".join(pieces))
    if first_token_s is None or num_tokens != item.num_outputs:
        raise LoadFailedError(f"{item.num_outputs} tokens were asked for, {num_tokens} came")
    return _Answer(num_tokens, first_token_s)


def _request(host: str, model: str, item: WorkItem) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "prompt": item.prompt_token_ids,
            "max_tokens": item.num_outputs,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _num_tokens(response: bytes) -> int:
    """The count that the server gives at the end of a stream."""
    head, _, body = response.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.1 200 ", head):
        raise LoadFailedError(f"answered {response[:500].decode(errors='replace')}")
    if b"transfer-encoding: chunked" in head.lower():
        body = _without_chunks(body)
    counts = re.findall(rb'"completion_tokens": ?(\d+)', body)
    if not counts or b"data: [DONE]" not in body:
        raise LoadFailedError(f"the stream ended early: {body[-500:].decode(errors='replace')}")
    return int(counts[-1])


def _without_chunks(body: bytes) -> bytes:
    """The content of a chunked body (RFC 9112, section 7.1)."""
    pieces: list[bytes] = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        num_bytes = int(size.split(b";")[0], 16)
        pieces.append(rest[:num_bytes])
        body = rest[num_bytes + 2 :] if num_bytes else b""
    return b"".join(pieces)


def main() -> None:
    """Run a workload against a server and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("workload", type=Path)
    parser.add_argument("--streams", type=int, help="clients that take one request after the other")
    options = parser.parse_args()
    print(json.dumps(asdict(run_load(options.url, options.model, read_workload(options.workload), options.streams))))


if __name__ == "__main__":
    main()
