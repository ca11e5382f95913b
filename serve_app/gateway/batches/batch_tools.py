"""What the work on batches needs of the rest of the Gateway."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve_app.config.batches import BatchesConfig
from serve_app.gateway.batches.callers import BatchCaller
from serve_app.gateway.batches.file_store import FileStore
from serve_app.gateway.batches.line_calls import CallLine
from serve_app.gateway.batches.running_lines import RunningLines
from serve_app.preprocessing.text_pool import TextPool


@dataclass(frozen=True, slots=True)
class BatchTools:
    """What the batches of one Gateway replica share."""

    config: BatchesConfig
    files: FileStore
    threads: TextPool  # of one thread: what it does to a batch's files happens in the order it was asked for
    call: CallLine
    caller_of: Callable[[str], BatchCaller | None]  # by owner
    check_model: Callable[[str, BatchCaller], None]  # raises ModelNotFoundError, UnavailableError while not known yet
    num_waiting: Callable[[str], int]  # requests before a new one, at the copy of a model that has the fewest
    running: RunningLines
    max_line_bytes: int
    watch_s: float = 1.0  # between looks whether a batch is to end, and notes of its progress
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.time
