"""Chat messages to prompt text, by a model's own template, in processes that can be killed."""

import json
import secrets
from queue import SimpleQueue
from typing import Any

from serve_app.errors import RequestError, UnprocessableError
from serve_app.preprocessing import template_worker
from serve_app.preprocessing.killable_process import KillableProcess
from serve_app.preprocessing.text_pool import TextPool


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
        self._workers = [
            KillableProcess(template_worker.__name__, arguments, "chat template") for _ in range(num_workers)
        ]
        self._idle: SimpleQueue[KillableProcess] = SimpleQueue()
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
