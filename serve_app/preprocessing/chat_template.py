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
_WALL_PER_CPU = 20.0  # how long a worker may be kept from its CPU time before it is taken for stuck
_IMPORT_ROOT = Path(__file__).resolve().parents[2]


class ChatTemplateRenderer:
    """A pool of template workers. A template that takes too long costs its worker, which is replaced.

    `timeout_s` is CPU time of one template, in seconds.
    """

    def __init__(
        self,
        *,
        num_workers: int = 1,
        timeout_s: float = 1.0,
        max_output_bytes: int = 1_000_000,
        max_memory_bytes: int = 512 * 2**20,
    ) -> None:
        arguments = [str(timeout_s), str(max_output_bytes), str(max_memory_bytes)]
        self._timeout_s = timeout_s
        self._max_output_bytes = max_output_bytes
        self._threads = TextPool(num_workers, max_waiting=256, name="chat template")
        self._workers = [_Worker(arguments) for _ in range(num_workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            worker.start()
            self._idle.put(worker)

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

    def render_now(self, template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        """Prompt text with the beginning of an answer; for threads, as it waits for a worker. Raises RequestError."""
        context = {"tools": None, "documents": None, **variables, "messages": messages, "add_generation_prompt": True}
        return self._render(json.dumps({"template": template, "variables": context}).encode())

    def close(self) -> None:
        """End all workers; nothing can be rendered afterwards."""
        for worker in self._workers:
            worker.stop()
        self._threads.close(is_waiting=True)  # a thread that was reading sees its pipe end
        for worker in self._workers:
            worker.discard()

    def _render(self, request: bytes) -> str:
        """Runs in a thread, and waits until a worker is idle."""
        worker = self._idle.get()
        try:
            reply = worker.exchange(request, self._timeout_s)
        except (TimeoutError, EOFError) as error:
            raise self._stopped(error) from error
        finally:
            self._idle.put(worker)
        return self._text_of(reply)

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
            reason = f"takes longer than {self._timeout_s:g} s"
        else:
            reason = "ended its worker (out of memory?)"
        return UnprocessableError(f"messages: the chat template {reason}; send less, or mend it", field="messages")


class _Worker:
    """One worker process and its two pipes; a process that had to be killed is replaced."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._stdin = self._stdout = -1
        self._is_ready = False  # has imported what it needs
        self._is_stopped = False

    def start(self) -> None:
        """Starts the process; does not wait for it."""
        if self._is_stopped:
            raise InternalError("the chat template workers are closed")
        search_path = os.pathsep.join([str(_IMPORT_ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", template_worker.__name__, *self._arguments],
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

    def exchange(self, request: bytes, timeout_s: float) -> bytes:
        """The reply to one request. TimeoutError, EOFError: there was none, and the process is a new one."""
        self._wait_until_ready()
        deadline = time.monotonic() + timeout_s * _WALL_PER_CPU
        try:
            self._write(template_worker.LENGTH.pack(len(request)) + request, deadline)
            return self._read_frame(deadline)
        except (TimeoutError, EOFError) as error:
            is_overtime = self.discard() == -template_worker.OVERTIME
            self.start()
            if is_overtime:
                raise TimeoutError from error
            raise

    def stop(self) -> None:
        """End the process for good. The only method that any thread may call at any time: it closes no pipe."""
        self._is_stopped = True
        process = self._process
        if process is not None:
            process.kill()

    def discard(self) -> int:
        """End the process, close its pipes, reap it. Returns its exit status."""
        process, self._process, self._is_ready = self._process, None, False
        if process is None:
            return 0
        with process:
            process.kill()
        return process.returncode

    def _wait_until_ready(self) -> None:
        if self._process is None:  # the last start failed
            self.start()
        if self._is_ready:
            return
        try:
            self._read_frame(time.monotonic() + _START_TIMEOUT_S)
        except (TimeoutError, EOFError) as error:
            self.discard()
            raise InternalError("the chat template worker does not start; see the server's log") from error
        self._is_ready = True

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
