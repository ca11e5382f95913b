"""Steps that go wrong: an index out of range breaks the device and ends the shard, too little memory fails the step."""

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.gpu_bad_index import Outcome
from bench.gpu_device import Bench
from bench.gpu_part import Note, Row, Rows
from bench.random_llama import SIZES, make_model, stage_of
from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.device_memory import CudaMemory
from serve_app.engine.largest_steps import largest_steps, num_step_blocks
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.tensors import to_data
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import EngineLimits, ShardSpec
from serve_app.types.steps import BatchStep, StepOutput
from serve_app.types.tensors import TensorSpec

_CHILD_S = 50
_TOO_MANY_BYTES = 1 << 50
_MAX_LEFT_BYTES = 64 << 20  # workspaces of libraries that come up in the step stay
_KEPT_BYTES = 256 << 20
_NUM_SEQS, _NUM_STEP_TOKENS, _BLOCK_SIZE = 8, 16_384, 16


@dataclass(frozen=True, slots=True)
class FaultRow:
    """One fault: what the engine made of it."""

    fault: str
    outcome: str
    problem: str | None

    def __str__(self) -> str:
        return f"{self.fault}: {self.outcome}"


def check_faults(bench: Bench) -> Rows:
    """A row for each."""
    yield _run_out_of_memory(bench)
    yield _generate_out_of_memory(bench)
    yield _bad_index(bench)


class Filling:
    """BatchStage that asks for more memory than there is, where its input says so."""

    inputs = {"size": TensorSpec("int64", ("batch",))}  # noqa: RUF012
    outputs = {"size": TensorSpec("int64", ("batch",))}  # noqa: RUF012
    first_part, end_part, parameter_bytes, linear_kernel = 0, 1, 0, ""
    root, token_embedding = nn.Module(), None
    column_layers: list[nn.Module] = []  # noqa: RUF012

    def forward(self, inputs: dict[str, Tensor], _hidden: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """See BatchStage."""
        sizes = inputs["size"]
        kept = torch.zeros(_KEPT_BYTES, dtype=torch.uint8, device=sizes.device)  # which the failure lets go
        kept = torch.cat((kept, torch.empty(int(sizes.sum()), dtype=torch.uint8, device=sizes.device)))
        return {"size": sizes + kept[0]}


def _run_out_of_memory(bench: Bench) -> FaultRow:
    device = bench.device
    runner = BatchRunner([Filling()], ShardSpec(0, 1, 0, 1, 0, 1), LoneCommunicator(), device)
    before_bytes = torch.cuda.memory_allocated(device) if bench.is_cuda else 0
    failed = runner.run(_step(0, _TOO_MANY_BYTES))
    left_bytes = torch.cuda.memory_allocated(device) - before_bytes if bench.is_cuda else 0
    after = runner.run(_step(1, 8))
    assert failed is not None
    assert after is not None
    kind = "OutOfMemoryError" if bench.is_cuda else "RuntimeError"  # which the CPU's allocator raises
    return FaultRow(
        "out of memory",
        f"the step fails ({failed.error}), {left_bytes} bytes of it are left, the next step: {after.error or 'right'}",
        memory_problem(failed.error, after.error, left_bytes, kind),
    )


def _generate_out_of_memory(bench: Bench) -> Row:
    """A step of a model that generates, first with a limit on memory and then without."""
    fault = "generation out of memory"
    if not bench.is_cuda:
        return Note(f"{fault}: not on cpu, whose memory has no limit for one process")
    try:
        guard_class = importlib.import_module("serve_app.engine.memory_guard").MemoryGuard
    except ImportError as error:
        return Note(f"{fault}: not tried, {error}")
    device, size = bench.device, SIZES["120M"]
    stage = stage_of(make_model(size, torch.bfloat16, device))
    limits = EngineLimits(_NUM_SEQS, _NUM_STEP_TOKENS, _NUM_STEP_TOKENS, _BLOCK_SIZE, num_blocks=0)
    limits = limits.with_blocks(num_step_blocks(limits))
    memory = CudaMemory(device)
    guard = guard_class(ModelRunner(stage, limits, LoneCommunicator(), device), memory.release)
    step = largest_steps(limits, size.vocab_size)[0]
    memory.release()
    before_bytes = memory.used_bytes()
    torch.cuda.set_per_process_memory_fraction(memory.held_bytes() / memory.total_bytes(), device)
    try:
        failed: StepOutput = guard.launch(step).output()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    left_bytes = memory.used_bytes() - before_bytes
    after: StepOutput = guard.launch(step).output()
    return FaultRow(
        fault,
        f"the step fails ({failed.error}), {left_bytes} bytes of it are left, the next step: {after.error or 'right'}",
        memory_problem(failed.error, after.error, left_bytes, "the GPU had no memory"),
    )


def memory_problem(error: str | None, next_error: str | None, left_bytes: int, kind: str) -> str | None:
    """What is wrong about a step that had no memory, which fails by itself with an error of a kind."""
    if error is None or not error.startswith(kind):
        return f"a step out of memory ends with {error}"
    if next_error is not None:
        return f"the step behind one out of memory fails with {next_error}"
    if left_bytes > _MAX_LEFT_BYTES:
        return f"a step out of memory leaves {left_bytes} bytes taken"
    return None


def _bad_index(bench: Bench) -> FaultRow:
    command = [sys.executable, "-m", "bench.gpu_bad_index", str(bench.device)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_S)
    fault = "index out of range"
    if not finished.stdout.strip():
        last = (finished.stderr.strip().splitlines() or [""])[-1]
        return FaultRow(fault, f"exit status {finished.returncode}: {last}", f"its process ends by itself: {last}")
    outcome = Outcome(**json.loads(finished.stdout.strip().splitlines()[-1]))  # told before a lost device may end it
    return FaultRow(fault, _described(outcome), index_problem(outcome, bench.device.type))


def index_problem(outcome: Outcome, device_type: str) -> str | None:
    """What is wrong about a bad index: on a CPU it fails its step, on CUDA it ends the shard."""
    if device_type == "cuda":
        ended = outcome.shard_error is not None and outcome.shard_error.startswith("a step broke the device")
        return None if ended else f"the shard does not end by the device's loss: {_described(outcome)}"
    fails = outcome.step_error == "IndexError" and outcome.next_error is None
    return None if fails else f"the step does not fail by itself: {_described(outcome)}"


def _described(outcome: Outcome) -> str:
    if outcome.shard_error is not None:
        return f"the shard ends ({outcome.shard_error})"
    return f"the step fails ({outcome.step_error}), the next step: {outcome.next_error or 'right'}"


def _step(step_id: int, size: int) -> BatchStep:
    return BatchStep(step_id, 0, {"size": to_data(torch.tensor([size]))})
