"""What every shard does, whatever it runs: take the Router's steps in order, and show that it lives."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from serve_app.engine.busy_time import BusyTime
from serve_app.engine.grammar_desk import GrammarCompiler, GrammarDesk
from serve_app.engine.output_reader import OutputReader
from serve_app.engine.step_runner import StepLauncher, StepRunner, StepT
from serve_app.errors import InternalError
from serve_app.types.plans import MemoryTaken
from serve_app.types.steps import BatchStep, GrammarChange, StepInput
from serve_app.wire.control_link import ControlClient, SendBeat

HEARTBEAT_INTERVAL_S = 0.5
_LOOK_S = 0.1  # a run that ends waits for that long


class ShardLoop:
    """The Router's steps, one after the other, and a heartbeat beside them."""

    def __init__(
        self,
        client: ControlClient,
        beat_s: float = HEARTBEAT_INTERVAL_S,
        free: Callable[[], None] | None = None,
        memory: Callable[[], MemoryTaken] | None = None,
    ) -> None:
        """free: called in another thread when the shard is to leave its group; lets a step end that waits there.

        memory: called in another thread with each beat.
        """
        self._client = client
        self._beat_s = beat_s
        self._free = free
        self._memory = memory
        self._num_steps_done = 0

    def run(
        self,
        step_type: type[StepT],
        runner: StepRunner[StepT],
        busy: BusyTime | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        """Run steps until the Router says stop. An exception here is the end of the whole group.

        busy: of the runner, for the Router. grammars: of the shard that draws; None: it is another, or draws by none.
        """
        with self._beating(busy), self._compiling(grammars) as desk:
            for step in self._steps(step_type, desk):
                self._time(step, busy)
                output = runner.run(step)
                if output is not None:
                    self._client.send_output(output)
                self._num_steps_done += 1

    def run_ahead(
        self, launcher: StepLauncher, busy: BusyTime | None = None, grammars: GrammarCompiler | None = None
    ) -> None:
        """The same of steps that are launched before the outputs of earlier ones are there."""
        with self._beating(busy), self._compiling(grammars) as desk:
            reader = OutputReader(self._client.output_sender())
            try:
                for step in self._steps(StepInput, desk, lambda: reader.failure is None):
                    self._time(step, busy)
                    pending = launcher.launch(step)
                    if pending is not None:
                        reader.put(pending)
                    self._num_steps_done += 1
            finally:
                reader.finish()
            if reader.failure is not None:
                raise reader.failure

    def _time(self, step: StepInput | BatchStep, busy: BusyTime | None) -> None:
        """Tell the Router of a step that is to be timed how long it takes here."""
        if step.is_timed and busy is not None:
            busy.watch(partial(self._client.send_stage_time, step.step_id))

    def _steps(
        self, step_type: type[StepT], desk: GrammarDesk | None, is_wanted: Callable[[], bool] | None = None
    ) -> Iterator[StepT]:
        """The steps as they come; raises InternalError where one is missing."""
        next_step_id = 0
        while (step := self._client.receive(is_wanted)) is not None:
            if isinstance(step, GrammarChange):
                if desk is not None:
                    desk.take(step)
                continue
            if not isinstance(step, step_type):
                raise InternalError(f"a {type(step).__name__} came where a {step_type.__name__} was due")
            if step.step_id != next_step_id:
                raise InternalError(f"step {step.step_id} came where step {next_step_id} was due: one was lost")
            next_step_id = step.step_id + 1
            yield step

    @contextmanager
    def _compiling(self, grammars: GrammarCompiler | None) -> Iterator[GrammarDesk | None]:
        """Where grammars go that the Router sends between steps."""
        if grammars is None:
            yield None
            return
        desk = GrammarDesk(grammars, self._client.grammar_sender())
        try:
            yield desk
        finally:
            desk.close()

    @contextmanager
    def _beating(self, busy: BusyTime | None) -> Iterator[None]:
        """Greet the Router, let it know that this process lives, and hear when the group is to be left."""
        stopped = threading.Event()
        busy_s = (lambda: None) if busy is None else (lambda: busy.seconds)
        arguments = (self._client.heartbeat_sender(), busy_s, stopped)
        beside = [threading.Thread(target=self._beat, args=arguments, daemon=True)]
        if self._free is not None:
            heard = (self._client.leave_listener(), self._free, stopped)
            beside.append(threading.Thread(target=_listen, args=heard, daemon=True))
        try:
            for thread in beside:
                thread.start()
            self._client.send_hello()
            yield
        finally:
            stopped.set()
            for thread in beside:
                thread.join()
            self._client.close()

    def _beat(self, send: SendBeat, busy_s: Callable[[], float | None], stopped: threading.Event) -> None:
        while not stopped.wait(self._beat_s):
            send(self._num_steps_done, busy_s(), None if self._memory is None else self._memory())


def _listen(is_told_to_leave: Callable[[float], bool], free: Callable[[], None], stopped: threading.Event) -> None:
    while not stopped.is_set():
        if is_told_to_leave(_LOOK_S):
            free()
            return
