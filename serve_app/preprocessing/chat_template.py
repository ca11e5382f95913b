"""Chat messages to prompt text, by a model's own template, in processes that can be killed."""

import json
import os
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from serve_app.errors import InternalError, RequestError, UnprocessableError
from serve_app.preprocessing import template_worker
from serve_app.preprocessing.text_pool import TextPool

_START_TIMEOUT_S = 60.0
_IMPORT_ROOT = Path(__file__).resolve().parents[2]


class ChatTemplateRenderer:
    """A pool of template workers. A template that takes too long costs its worker, which is replaced."""

    def __init__(
        self,
        *,
        num_workers: int = 1,
        timeout_s: float = 1.0,
        max_output_bytes: int = 1_000_000,
        max_memory_bytes: int = 512 * 2**20,
    ) -> None:
        self._arguments = [str(timeout_s), str(max_output_bytes), str(max_memory_bytes)]
        self._timeout_s = timeout_s
        self._max_output_bytes = max_output_bytes
        self._threads = TextPool(num_workers, max_waiting=256, name="chat template")
        self._is_closed = False
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._workers = [self._start_worker() for _ in range(num_workers)]

    async def render(
        self,
        template: str,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """Prompt text. Raises RequestError when the template refuses the messages, loops or writes too much."""
        marker = f"[{secrets.token_hex(16)}]" if continue_final_message else ""
        if continue_final_message:  # the text is cut where the last message's content ends
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + marker}]
        context = {**(variables or {}), "messages": messages, "add_generation_prompt": add_generation_prompt}
        request = json.dumps({"template": template, "variables": context}).encode()
        text = await self._threads.run(self._render, request)
        if not continue_final_message:
            return text
        before, found, _after = text.rpartition(marker)
        if not found:
            raise RequestError(
                "continue_final_message=true: the chat template does not show the last message; send false",
                field="continue_final_message",
            )
        return before

    def close(self) -> None:
        """End all workers; nothing can be rendered afterwards."""
        self._is_closed = True
        self._threads.close()
        for worker in self._workers:
            worker.kill()

    def _start_worker(self) -> "_Worker":
        worker = _Worker(self._arguments)
        self._idle.put(worker)
        return worker

    def _render(self, request: bytes) -> str:
        """Runs in a thread; there are as many threads as workers, so one is always idle."""
        worker = self._idle.get()
        try:
            worker.wait_until_ready()
            reply = worker.exchange(request, time.monotonic() + self._timeout_s)
        except (TimeoutError, EOFError) as error:
            self._replace(worker)
            if not worker.is_ready:
                raise InternalError("the chat template worker does not start; see the server's log") from error
            raise self._stopped(error) from error
        self._idle.put(worker)
        return self._text_of(reply)

    def _replace(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers.remove(worker)
        if not self._is_closed:
            pass

    def _text_of(self, reply: bytes) -> str:
        status, text = reply[:1], reply[1:].decode("utf-8", errors="replace")
        if status == template_worker.RENDERED:
            return text
        if status == template_worker.TOO_LARGE:
            raise UnprocessableError(
                f"messages: the chat template wrote more than {self._max_output_bytes} bytes; send less",
                field="messages",
            )
        if status == template_worker.RAISED:
            raise RequestError(f"messages: the chat template refuses them: {text}", field="messages")
        raise RequestError(f"messages: the chat template failed on them: {text}", field="messages")

    def _stopped(self, error: Exception) -> RequestError:
        if isinstance(error, TimeoutError):
            reason = f"took longer than {self._timeout_s:g} s"
        else:
            reason = "ended its worker (out of memory?)"
        return UnprocessableError(f"messages: the chat template {reason}; send less, or mend it", field="messages")


class _Worker:
    """One worker process and its two pipes."""

    def __init__(self, arguments: list[str]) -> None:
        self.is_ready = False
        search_path = os.pathsep.join([str(_IMPORT_ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", template_worker.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": search_path, "PYTHONUTF8": "1"},  # nothing of ours is handed on
            cwd="/",
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)

    def wait_until_ready(self) -> None:
        """Returns once the worker has imported what it needs. Raises TimeoutError, EOFError."""
        if not self.is_ready:
            self._read_frame(time.monotonic() + _START_TIMEOUT_S)
            self.is_ready = True

    def exchange(self, request: bytes, deadline: float) -> bytes:
        """The reply to one request. Raises TimeoutError at the deadline, EOFError when the worker died."""
        self._write(template_worker.LENGTH.pack(len(request)) + request, deadline)
        return self._read_frame(deadline)

    def kill(self) -> None:
        """End the process now and reap it."""
        with self._process:
            self._process.kill()

    def _read_frame(self, deadline: float) -> bytes:
        (num_bytes,) = template_worker.LENGTH.unpack(self._read(template_worker.LENGTH.size, deadline))
        return self._read(num_bytes, deadline)

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < num_bytes:
            _wait_for(self._stdout, select.POLLIN, deadline)
            piece = os.read(self._stdout, num_bytes - len(content))
            if not piece:
                raise EOFError
            content += piece
        return bytes(content)

    def _write(self, content: bytes, deadline: float) -> None:
        rest = memoryview(content)
        while rest:
            _wait_for(self._stdin, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BrokenPipeError as error:
                raise EOFError from error


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
