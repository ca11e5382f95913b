"""Fakes of the engine: a cache that proves the scheduler right, a deterministic "model", shards in threads."""

import contextlib
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import zmq

from serve_app.engine.busy_time import HostBusyTime
from serve_app.engine.shard_loop import ShardLoop
from serve_app.types.generation import FinishReason, GenerateRequest, SamplingParams, TokenLogprobs
from serve_app.types.plans import MemoryTaken
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import DRAWN_BEFORE, SequenceStart, StepInput, StepOutput
from serve_app.wire.control_link import ControlAddress, ControlClient, SendBeat

BEAT_S = 0.1
TAKEN = MemoryTaken(kv_cache_bytes=4096, process_bytes=2**28)  # what each shard says


@dataclass(frozen=True, slots=True)
class FakeModel:
    """Draws the next token as a pure function of seed, choice and all tokens before it."""

    vocab_size: int = 29
    broken_seeds: frozenset[int] = frozenset()  # their logits are not finite once three tokens are out
    has_memory: bool = True  # False: for no step

    def next_token(self, history: list[int], num_outputs: int, start: SequenceStart) -> int:
        """The token after `history`; -1 where the logits are not finite."""
        if start.params.seed in self.broken_seeds and num_outputs == 3:
            return -1
        token_id = zlib.crc32(repr((start.params.seed, start.choice, history)).encode()) % self.vocab_size
        while num_outputs < start.params.min_tokens and token_id in start.end_token_ids:
            token_id = (token_id + 1) % self.vocab_size
        return token_id


@dataclass(frozen=True, slots=True)
class Reference:
    """What one choice of a request gives when it runs alone."""

    token_ids: list[int]
    finish_reason: FinishReason


def run_alone(
    model: FakeModel, request: GenerateRequest, choice: int, max_request_tokens: int, eos_token_ids: frozenset[int]
) -> Reference:
    """One choice, token by token: the plainest thing that can be right."""
    params = request.params
    end_token_ids = set(params.stop_token_ids) | (set() if params.ignore_eos else eos_token_ids)
    start = start_of(params, choice, sorted(end_token_ids))
    history, outputs = list(request.prompt_token_ids), list[int]()
    while True:
        token_id = model.next_token(history, len(outputs), start)
        if token_id < 0:
            return Reference(outputs, "error")
        history.append(token_id)
        outputs.append(token_id)
        if token_id in end_token_ids and len(outputs) >= params.min_tokens:
            return Reference(outputs, "stop")
        if len(outputs) == params.max_tokens or len(history) == max_request_tokens:
            return Reference(outputs, "length")


def start_of(params: SamplingParams, choice: int = 0, end_token_ids: list[int] | None = None) -> SequenceStart:
    """A start as the scheduler would send it for a fresh sequence."""
    return SequenceStart(0, choice, params, end_token_ids or [], 0, [], 0)


def logprob_at(token_id: int, position: int) -> TokenLogprobs:
    """A log-probability that tells which position it is of."""
    return TokenLogprobs(token_id, -float(position), 1, [], [])


class Slot(NamedTuple):
    """What a cache slot holds: keys and values of a token, which follow from it and all before it."""

    position: int
    token_id: int
    before: int  # a hash of the tokens before it


def _slot_of(history: list[int], position: int) -> Slot:
    return Slot(position, history[position], zlib.crc32(repr(history[:position]).encode()))


@dataclass(slots=True)
class _Row:
    """A slot row: its block table, and what the sampler knows of the sequence in it."""

    sequence: tuple[int, int]
    start: SequenceStart
    num_outputs: int
    block_table: list[int] = field(default_factory=list)
    has_drawn: bool = False
    is_lost: bool = False  # it has read what a failed step was to write; nobody may see what it draws


_BROKEN = Slot(-1, -1, -1)
_LOST_TOKEN = 1 << 20  # of no vocabulary


class CacheOracle:
    """Plays all shards of a group: knows only what steps tell, and fails when a sequence would read a wrong slot."""

    def __init__(self, limits: EngineLimits, model: FakeModel) -> None:
        self.num_steps = 0
        self._limits = limits
        self._model = model
        self._slots: dict[int, Slot] = {}
        self._rows: dict[int, _Row] = {}
        self._histories: dict[tuple[int, int], list[int]] = {}  # tokens that were fed or drawn

    def run(self, step: StepInput) -> StepOutput:
        """Run one step: all tokens are written, then each sequence reads all its positions."""
        if not self._model.has_memory:
            return self.fail(step, "the GPU had no memory for a step")
        self._check_shape(step)
        self.num_steps += 1
        for start in step.starts:
            self._start(start)
        self._copy(step)
        for slot_row, blocks in zip(step.slot_rows, step.new_blocks, strict=True):
            self._rows[slot_row].block_table.extend(blocks)
            assert len(self._rows[slot_row].block_table) <= self._limits.max_blocks_per_seq
        first = 0
        for slot_row, computed, count in zip(step.slot_rows, step.num_computed, step.num_tokens, strict=True):
            self._write(self._rows[slot_row], computed, step.token_ids[first : first + count])
            first += count
        for slot_row, computed, count in zip(step.slot_rows, step.num_computed, step.num_tokens, strict=True):
            self._read(self._rows[slot_row], computed + count)
        return self._draw(step)

    def fail(self, step: StepInput, error: str) -> StepOutput:
        """Run out of memory in a step: what it was to write is anything."""
        self._check_shape(step)
        self.num_steps += 1
        for start in step.starts:
            self._start(start)
        for index in step.moved:
            self._rows[step.slot_rows[index]].block_table.clear()
        size = self._limits.block_size
        broken = [new * size + place for _old, new in step.copies for place in range(size)]
        columns = zip(step.slot_rows, step.new_blocks, step.num_computed, step.num_tokens, strict=True)
        for slot_row, blocks, computed, count in columns:
            row = self._rows[slot_row]
            row.block_table.extend(blocks)
            broken += [self._slot(row, position) for position in range(computed, computed + count)]
            row.is_lost = True
        self._slots |= dict.fromkeys(broken, _BROKEN)
        return StepOutput(step.step_id, [], error=error)

    def sequences(self, step: StepInput) -> list[tuple[int, int]]:
        """Who is in a step that has run last."""
        return [self._rows[slot_row].sequence for slot_row in step.slot_rows]

    def _copy(self, step: StepInput) -> None:
        size = self._limits.block_size
        read = [[self._slots.get(old * size + place) for place in range(size)] for old, _new in step.copies]
        for (_old, new), slots in zip(step.copies, read, strict=True):
            for place, slot in enumerate(slots):
                if slot is not None:
                    self._slots[new * size + place] = slot
        for index in step.moved:
            self._rows[step.slot_rows[index]].block_table.clear()

    def _check_shape(self, step: StepInput) -> None:
        limits = self._limits
        assert step.step_id == self.num_steps
        assert 0 < len(step.token_ids) <= limits.max_num_batched_tokens
        assert sum(step.num_tokens) == len(step.token_ids)
        assert min(step.num_tokens) > 0
        assert len(set(step.slot_rows)) == len(step.slot_rows) <= limits.max_num_seqs
        assert {start.slot_row for start in step.starts} <= set(step.slot_rows)
        assert set(step.slot_rows) <= set(range(limits.max_num_seqs))

    def _start(self, start: SequenceStart) -> None:
        sequence = (start.params.seed, start.choice)
        history = self._histories.setdefault(sequence, [])
        if start.history_token_ids:
            num_outputs = len(start.history_token_ids) - start.num_history_prompt_tokens
            assert num_outputs == start.num_outputs
            assert history == start.history_token_ids[: len(history)]
        assert bool(start.history_token_ids) == start.params.has_penalties
        self._rows[start.slot_row] = _Row(sequence, start, start.num_outputs)

    def _write(self, row: _Row, computed: int, token_ids: list[int]) -> None:
        end = computed + len(token_ids)
        row.is_lost |= any(self._slots.get(self._slot(row, position)) == _BROKEN for position in range(computed))
        if row.is_lost:
            self._slots |= dict.fromkeys((self._slot(row, position) for position in range(computed, end)), _BROKEN)
            return
        history = self._histories[row.sequence]
        for position in range(len(history), computed):  # another sequence has computed it
            history.append(self._slots[self._slot(row, position)].token_id)
        for position, token_id in enumerate(token_ids, computed):
            assert position <= len(history), "a position was left out"
            if token_id == DRAWN_BEFORE:
                assert row.has_drawn, "the row has drawn nothing"
                token_id = history[position] if position < len(history) else 0  # after logits that were not finite
            if position == len(history):
                history.append(token_id)
            assert history[position] == token_id, "the scheduler fed a token that was not drawn"
            self._slots[self._slot(row, position)] = _slot_of(history, position)

    def _read(self, row: _Row, num_positions: int) -> None:
        if row.is_lost:
            return
        expected = self._histories[row.sequence]
        for position in range(num_positions):
            found = self._slots.get(self._slot(row, position))
            assert found == _slot_of(expected, position), f"position {position} reads {found}"

    def _slot(self, row: _Row, position: int) -> int:
        block_size = self._limits.block_size
        block = row.block_table[position // block_size]
        assert 0 <= block < self._limits.num_blocks
        return block * block_size + position % block_size

    def _draw(self, step: StepInput) -> StepOutput:
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        for index, is_drawn in enumerate(step.samples):
            if not is_drawn:
                continue
            row = self._rows[step.slot_rows[index]]
            if row.is_lost:
                token_ids.append(_LOST_TOKEN)
                logprobs.append(None)
                continue
            history = self._histories[row.sequence]
            assert len(history) == step.num_computed[index] + step.num_tokens[index], "drawn before its last token"
            token_id = self._model.next_token(history, row.num_outputs, row.start)
            token_ids.append(token_id)
            row.has_drawn = True
            logprobs.append(None if row.start.params.num_logprobs is None else logprob_at(token_id, len(history)))
            row.num_outputs += 1
            if token_id >= 0:
                history.append(token_id)
        has_logprobs = any(entry is not None for entry in logprobs)
        return StepOutput(step.step_id, token_ids, logprobs if has_logprobs else None, _prompt_logprobs(step))


def _prompt_logprobs(step: StepInput) -> dict[int, list[TokenLogprobs]]:
    found = {}
    for index, targets in step.prompt_targets.items():
        first = step.num_computed[index] + targets.offset + 1
        assert targets.offset + len(targets.token_ids) <= step.num_tokens[index]
        found[index] = [logprob_at(token_id, position) for position, token_id in enumerate(targets.token_ids, first)]
    return found


class SlowCompiler:
    """A GrammarCompiler that is done with a grammar when a test says so."""

    def __init__(self) -> None:
        self.compiled: dict[str, Future[object]] = {}  # that it keeps
        self.has_begun = threading.Event()

    def prepare(self, text: str) -> Future[object]:
        """Begin."""
        self.compiled[text] = Future()
        self.has_begun.set()
        return self.compiled[text]

    def forget(self, text: str) -> None:
        """Keep it no more."""
        del self.compiled[text]

    def finish(self, text: str) -> None:
        """Be done with a grammar."""
        self.compiled[text].set_result(None)


class FakeShard:
    """A shard in a thread of this process: the real loop over the real control link, a CacheOracle for an engine."""

    def __init__(self, address: ControlAddress, index: int, num_shards: int, oracle: CacheOracle) -> None:
        self.failure: BaseException | None = None
        self.is_stuck = threading.Event()  # set: the step at hand does not end
        self.is_free = threading.Event()  # set: a stuck step ends after all
        self.step_s = 0.0
        self.compiler: SlowCompiler | None = None  # of the one that draws
        self.busy = HostBusyTime()
        self._is_last = index == num_shards - 1
        self._oracle = oracle
        self._client = ControlClient(address, index)
        self._loop = SilentLoop(self._client, BEAT_S)
        self.is_silent = self._loop.is_silent
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Connect and wait for steps."""
        self._thread.start()

    def join(self) -> None:
        """Wait for its end, which the server's stop message brings, and tell what went wrong in it."""
        self.is_free.set()
        if self._thread.ident is None:  # never started
            self._client.close()
            return
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure

    def end(self) -> None:
        """Wait for its end, as `join` does, whatever has gone wrong in it."""
        self.is_free.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def kill(self) -> None:
        """End it in the midst of what it does."""
        self.is_free.set()
        if self._thread.ident is None:
            self._client.close()
            return
        if not self._thread.is_alive():
            return
        threading.Thread(target=self._client.interrupt, daemon=True).start()
        self._thread.join(timeout=10)

    def run(self, step: StepInput) -> StepOutput | None:
        """Run a step, as a StepRunner does."""
        self.busy.begin()
        output = self._oracle.run(step)
        time.sleep(self.step_s)
        self.busy.end()
        if self.is_stuck.is_set():
            self.is_free.wait()
        return output if self._is_last else None

    def _run(self) -> None:
        try:
            self._loop.run(StepInput, self, self.busy, self.compiler)
        except zmq.ContextTerminated:
            pass  # killed
        except BaseException as error:  # shown by join
            self.failure = error


class SilentLoop(ShardLoop):
    """A ShardLoop whose heartbeat can be stopped."""

    def __init__(self, client: ControlClient, beat_s: float) -> None:
        super().__init__(client, beat_s, memory=lambda: TAKEN)
        self.is_silent = threading.Event()  # set: lives on without heartbeats

    def _beat(self, send: SendBeat, busy_s: Callable[[], float | None], stopped: threading.Event) -> None:
        def send_unless_silent(num_steps_done: int, busy_s: float | None, memory: MemoryTaken | None) -> None:
            if not self.is_silent.is_set():
                with contextlib.suppress(zmq.ContextTerminated):  # killed
                    send(num_steps_done, busy_s, memory)

        super()._beat(send_unless_silent, busy_s, stopped)
