"""What every shard does, whatever it runs: take the Router's steps in order, and show that it lives."""

import threading
from collections.abc import Callable

from serve_app.engine.step_runner import StepRunner, StepT
from serve_app.errors import InternalError
from serve_app.wire.links import ControlClient

HEARTBEAT_INTERVAL_S = 0.5


class ShardLoop:
    """The Router's steps, one after the other, and a heartbeat beside them."""

    def __init__(self, client: ControlClient, beat_s: float = HEARTBEAT_INTERVAL_S) -> None:
        self._client = client
        self._beat_s = beat_s
        self._num_steps_done = 0

    def run(self, step_type: type[StepT], runner: StepRunner[StepT]) -> None:
        """Run steps until the Router says stop. An exception here is the end of the whole group."""
        client = self._client
        stopped = threading.Event()
        beat = threading.Thread(target=self._beat, args=(client.heartbeat_sender(), stopped), daemon=True)
        try:
            beat.start()
            client.send_hello()
            next_step_id = 0
            while (step := client.receive()) is not None:
                if not isinstance(step, step_type):
                    raise InternalError(f"a {type(step).__name__} came where a {step_type.__name__} was due")
                if step.step_id != next_step_id:
                    raise InternalError(f"step {step.step_id} came where step {next_step_id} was due: one was lost")
                next_step_id = step.step_id + 1
                output = runner.run(step)
                if output is not None:
                    client.send_output(output)
                self._num_steps_done += 1
        finally:
            stopped.set()
            beat.join()
            client.close()

    def _beat(self, send: Callable[[int], None], stopped: threading.Event) -> None:
        while not stopped.wait(self._beat_s):
            send(self._num_steps_done)
