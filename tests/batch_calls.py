"""What tests of batches share: files of requests, a Gateway with a directory, an endpoint that answers by script."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import openai
from openai.types import Batch

from serve_app.config.batches import BatchesConfig
from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.batches.batch_store import BatchStore
from serve_app.gateway.batches.batch_tools import BatchTools
from serve_app.gateway.batches.callers import BatchCaller
from serve_app.gateway.batches.file_store import FileStore
from serve_app.gateway.batches.line_calls import LineAnswer
from serve_app.gateway.batches.places import OPEN_OWNER, Places
from serve_app.gateway.batches.running_lines import RunningLines
from serve_app.gateway.batches.worker import BatchWorker
from serve_app.gateway.bodies.batches import Batch as BatchObject
from serve_app.gateway.bodies.batches import BatchBody
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.preprocessing.text_pool import TextPool
from tests.fakes import ScriptedBackend

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def completion(custom_id: str, prompt: str = "hello", **keys: Any) -> dict[str, Any]:
    """One line of a file for /v1/completions."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, **keys}
    return {"custom_id": custom_id, "method": "POST", "url": COMPLETIONS, "body": body}


def jsonl(lines: Sequence[object]) -> bytes:
    """The file of these lines."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def read_jsonl(content: bytes) -> dict[str, dict[str, Any]]:
    """The lines of a result file by custom_id, each of which stands there once."""
    lines = [json.loads(line) for line in content.splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines)
    return by_id


@asynccontextmanager
async def gateway(backend: ScriptedBackend, directory: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A Gateway that has batches. settings: `batches_*` are those of batches, others of the Gateway."""
    of_batches = {name.removeprefix("batches_"): settings.pop(name) for name in list(settings) if "batches_" in name}
    config = GatewayConfig(batches=BatchesConfig(directory=str(directory), **of_batches), **settings)
    app = build_http_app(DataPlane(backend, config))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


def openai_of(client: httpx.AsyncClient, key: str = "none") -> openai.AsyncOpenAI:
    """OpenAI's client over another one."""
    return openai.AsyncOpenAI(
        base_url=f"{client.base_url}/v1", api_key=key, max_retries=0, http_client=cast(Any, client)
    )


async def started(client: openai.AsyncOpenAI, content: bytes, endpoint: Any = COMPLETIONS, **keys: Any) -> Batch:
    """A batch of a file that is uploaded first."""
    file = await client.files.create(file=("lines.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **keys)


async def until(client: openai.AsyncOpenAI, batch_id: str, *statuses: str) -> Batch:
    """The batch once it has one of these statuses; without any: once it has ended."""
    async with asyncio.timeout(20):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in (statuses or ENDED):
                return batch
            await asyncio.sleep(0.005)


async def becomes(condition: Callable[[], bool]) -> None:
    """Until something is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is on disk
            await asyncio.sleep(0.001)


@dataclass
class ScriptedLines:
    """A CallLine that answers what `answer` says, and notes what it was asked."""

    answer: Callable[[str], LineAnswer] = lambda prompt: said(prompt)
    prompts: list[str] = field(default_factory=list)  # that were begun
    holds: Callable[[str], bool] = lambda _prompt: False  # for ever
    num_running: int = 0
    most_running: int = 0

    async def __call__(
        self,
        path: str,  # noqa: ARG002
        body: bytes,
        caller: BatchCaller,  # noqa: ARG002
        limit_s: float,  # noqa: ARG002
    ) -> LineAnswer:
        """The script's answer to the prompt of a body."""
        prompt = str(json.loads(body)["prompt"])
        self.prompts.append(prompt)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.sleep(0)
            if self.holds(prompt):
                await asyncio.Event().wait()
            return self.answer(prompt)
        finally:
            self.num_running -= 1


def said(text: str, status: int = 200, retry_after_s: float | None = None) -> LineAnswer:
    """An answer with a text and its tokens."""
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    body = json.dumps({"text": text, "usage": usage}, indent=2).encode()  # on several lines
    return LineAnswer(status, body, f"req_{text}", retry_after_s)


@dataclass
class Replica:
    """One Gateway replica's work on a directory, without a Gateway."""

    directory: Path
    call: ScriptedLines = field(default_factory=ScriptedLines)
    settings: dict[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    caller_of: Callable[[str], BatchCaller | None] = lambda _owner: BatchCaller(None)
    num_waiting: Callable[[str], int] = lambda _model: 0
    is_draining: Callable[[], bool] = lambda: False
    waits_s: list[float] = field(default_factory=list)  # that were slept

    def __post_init__(self) -> None:
        places = Places(self.directory)
        config = BatchesConfig(directory=str(self.directory), **self.settings)
        self.files, self.batches = FileStore(places, config, self.clock), BatchStore(places, self.clock)
        self.threads = TextPool(1, name="batch")
        tools = BatchTools(
            config=config,
            files=self.files,
            threads=self.threads,
            call=self.call,
            caller_of=lambda owner: self.caller_of(owner),
            check_model=lambda _model, _caller: None,
            num_waiting=lambda model: self.num_waiting(model),
            running=RunningLines(config.concurrency),
            max_line_bytes=10_000,
            watch_s=0.01,
            monotonic=lambda: sum(self.waits_s),
            sleep=self._sleep,
            clock=lambda: self.clock(),
        )
        self.worker = BatchWorker(self.batches, tools, lambda: self.is_draining(), poll_s=0.01)

    async def _sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        await asyncio.sleep(0.001)

    def add(self, lines: Sequence[object], owner: str = OPEN_OWNER) -> BatchObject:
        """A batch of a file of these lines."""
        upload = self.files.begin(owner)
        upload.write(jsonl(lines))
        file = upload.finish("lines.jsonl", "batch", None)
        body = BatchBody(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
        return self.batches.create(owner, body)

    async def until(self, batch_id: str, *statuses: str, owner: str = OPEN_OWNER) -> BatchObject:
        """The batch once it has one of these statuses; without any: once it has ended."""
        await becomes(lambda: self.batches.describe(owner, batch_id).status in (statuses or ENDED))
        return self.batches.describe(owner, batch_id)

    def num_completed(self, batch_id: str, owner: str = OPEN_OWNER) -> int:
        """As the batch's owner sees it."""
        return self.batches.describe(owner, batch_id).request_counts.completed

    def results(self, file_id: str | None, owner: str = OPEN_OWNER) -> dict[str, dict[str, Any]]:
        """The lines of a result file."""
        return {} if file_id is None else read_jsonl(self.files.content(owner, file_id).read_bytes())

    @asynccontextmanager
    async def working(self) -> AsyncIterator["Replica"]:
        """While it works."""
        self.worker.start()
        try:
            yield self
        finally:
            await self.worker.close()
            self.threads.close(is_waiting=True)
