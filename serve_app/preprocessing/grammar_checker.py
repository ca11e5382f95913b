"""Whether a model's text can be held to a grammar, tried out beside the event loop in a process that can be killed."""

from collections import OrderedDict
from dataclasses import dataclass

from serve_app.errors import RequestError
from serve_app.preprocessing import grammar_worker
from serve_app.preprocessing.grammar_limits import COMPILE_CPU_S
from serve_app.preprocessing.killable_process import KillableProcess
from serve_app.preprocessing.text_pool import TextPool

_MAX_KNOWN = 256
_MAX_WAITING = 64
_MAX_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial."""

    grammar: str  # that answers can be held to
    reason: str = ""  # why they cannot; empty: they can


class GrammarChecker:
    """Tries each grammar once. Its process starts with the first one. Used from one event loop."""

    def __init__(self, compile_cpu_s: float = COMPILE_CPU_S) -> None:
        self._compile_cpu_s = compile_cpu_s
        self._thread = TextPool(1, max_waiting=_MAX_WAITING, name="grammar")
        arguments = [str(compile_cpu_s), str(_MAX_MEMORY_BYTES)]
        self._process = KillableProcess(grammar_worker.__name__, arguments, "grammar")
        self._known: OrderedDict[bytes, Outcome] = OrderedDict()

    async def check(self, grammar: str, field: str, *, is_own: bool = False) -> str:
        """The grammar that answers can be held to; is_own: it is as a client wrote it, in Lark or GBNF.

        Raises RequestError for one that cannot be used, QueueFullError when too many wait to be tried.
        """
        request = (grammar_worker.OWN if is_own else grammar_worker.READY_MADE) + grammar.encode()
        outcome = self._known.get(request)
        if outcome is None:
            outcome = await self._thread.run(self._try, request)
            self._known[request] = outcome
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(request)
        if outcome.reason:
            raise RequestError(f"{field} cannot be used: {outcome.reason}", field=field)
        return outcome.grammar

    def close(self) -> None:
        """End the process; nothing can be checked afterwards."""
        self._process.stop()
        self._thread.close(is_waiting=True)
        self._process.discard()

    def _try(self, request: bytes) -> Outcome:
        try:
            reply = self._process.exchange(request, self._compile_cpu_s)
        except TimeoutError:
            return Outcome("", f"it takes longer than {self._compile_cpu_s:g} s to compile; make it simpler")
        except EOFError:
            return Outcome("", "it takes too much memory to compile; make it simpler")
        text = reply[1:].decode()
        return Outcome(text) if reply[:1] == grammar_worker.FITS else Outcome("", text or "no text fits it")
