"""What a process does that works for another over pipes: requests in, replies out, within limits.

It may be killed at any time, and is by its own timer when a request takes more than its CPU time. Frames on stdin and
stdout: 4 bytes length (big endian), then the content. Standard library only.
"""

import os
import resource
import signal
import struct
from collections.abc import Callable
from typing import Any

READY = b"+"
LENGTH = struct.Struct(">I")
OVERTIME = signal.SIGPROF  # what kills a process whose request has used up its time


def answer_frames(answer: Callable[[bytes], bytes], timeout_s: float, max_memory_bytes: int) -> None:
    """Answer requests until stdin closes; timeout_s is CPU time of one."""
    _limit_resources(max_memory_bytes)
    source, sink = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up between frames
    _write_frame(sink, READY)
    while (request := _read_frame(source)) is not None:
        signal.setitimer(signal.ITIMER_PROF, timeout_s)  # CPU time: on a busy machine all takes longer
        reply = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write_frame(sink, reply)


def _limit_resources(max_memory_bytes: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, max_memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, hard))


def _read_frame(source: Any) -> bytes | None:
    header = source.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (num_bytes,) = LENGTH.unpack(header)
    content: bytes = source.read(num_bytes)
    return content if len(content) == num_bytes else None


def _write_frame(sink: Any, content: bytes) -> None:
    sink.write(LENGTH.pack(len(content)) + content)
    sink.flush()
