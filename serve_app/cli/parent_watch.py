"""The end of a process whose parent was killed: in order, in time in any case, and with all that it has started."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from serve_app.cli.serve_process import end_all, session_members, signal_all


class ParentWatch:
    """While it is entered, the parent's death is a SIGINT; only the first SIGINT is heeded.

    The parent holds the other end of a pipe, which the kernel closes however that ends: at once, and no moment is too
    early to notice. (Linux's PR_SET_PDEATHSIG is sent when the thread ends that has started the child, and has to be
    asked for after that start.) To be entered from the main thread.
    """

    def __init__(self, pipe: int, end: Callable[[], None], shutdown_s: float) -> None:
        """pipe: the file descriptor to read; end: called on leaving when the parent is gone, before the rest is ended.

        shutdown_s: from the parent's death on; what runs then is killed. Whoever leads its session ends what else is
        in it.
        """
        self.is_orphan = False
        self._pipe = pipe
        self._end = end
        self._shutdown_s = shutdown_s
        self._is_interrupted = False

    def __enter__(self) -> "ParentWatch":
        signal.signal(signal.SIGINT, self._interrupt)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_orphan:
            try:
                self._end()
            finally:
                end_all(_others)

    def _watch(self) -> None:
        while os.read(self._pipe, 4096):
            continue
        self.is_orphan = True
        main_id = threading.main_thread().ident
        assert main_id is not None
        print("the parent process is gone: this one ends, and all that it has started", flush=True)
        signal.pthread_kill(main_id, signal.SIGINT)
        time.sleep(self._shutdown_s)
        signal_all([*_others(), os.getpid()], signal.SIGKILL)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if not self._is_interrupted:
            self._is_interrupted = True
            raise KeyboardInterrupt


def _others() -> list[int]:
    """Of this process's own session; none when another process leads it."""
    own = os.getpid()
    return [pid for pid in session_members(own) if pid != own]
