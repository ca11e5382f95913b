"""How large a shard's KV cache becomes, from loading to allocation, on a device whose memory a test sets."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.engine import generation_engine
from serve_app.engine.generation_engine import GenerationEngine
from serve_app.engine.largest_steps import largest_steps, num_step_blocks
from serve_app.engine.memory_profile import limits_to_measure, measure_memory
from serve_app.engine.step_runner import StepRunner
from serve_app.errors import ConfigError
from serve_app.models.compiled.build import CompiledChoice
from serve_app.parallel.communicator import Communicator, LoneCommunicator
from serve_app.parallel.group_communicator import GroupCommunicator
from serve_app.parallel.process_groups import connect_store, open_store
from serve_app.planning.planner import kv_shape_on
from serve_app.types.shards import GPU_RESERVE_BYTES, EngineLimits, Rendezvous, ShardSettings
from serve_app.types.steps import StepInput, StepOutput
from tests.checkpoints import make_checkpoint
from tests.compiled import kernels_or_skip
from tests.fakes_memory import FakeMemory
from tests.plain_driver import Split, shard_settings

CPU = torch.device("cpu")
MIB = 1024**2
LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=128, block_size=16, num_blocks=0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"), max_position_embeddings=256)


def measured_settings(directory: Path, split: Split) -> list[ShardSettings]:
    settings = [cast(ShardSettings, one) for one in shard_settings(directory, split)]
    return [replace(one, kv_cache_bytes=None, max_model_len=128) for one in settings]


def test_the_cache_is_what_the_largest_steps_leave(llama: Path) -> None:
    (settings,) = measured_settings(llama, Split(1, 1))
    block_bytes = kv_shape_on(settings.shard, read_model_spec(llama), "float32").block_bytes(16)
    own_cache = num_step_blocks(LIMITS) * block_bytes
    memory = FakeMemory(total=1000 * MIB, weights=100 * MIB, kept=10 * MIB + own_cache, passing=20 * MIB)
    engine = GenerationEngine(settings, CPU, memory)
    report = engine.load(LoneCommunicator())
    assert (engine.is_measured, report.num_blocks) == (True, 0)
    num_blocks = engine.measure()
    assert num_blocks == (900 * MIB - 100 * MIB - 30 * MIB - GPU_RESERVE_BYTES) // block_bytes
    assert memory.calls == ["release", "release", "start_peak", "peak", "release", "release"]
    assert engine.memory_taken().kv_cache_bytes == 0
    engine.allocate(LIMITS.with_blocks(10))
    taken = engine.memory_taken()
    assert (taken.kv_cache_bytes, taken.device_bytes) == (10 * block_bytes, memory.held_bytes())
    assert taken.process_bytes > 50 * MIB, "torch is there"
    engine.forget()
    assert engine._runner is None, "the cache is gone, and its memory is given back"
    assert memory.calls[6:] == ["release"]
    assert engine.measure() == num_blocks, "a new epoch finds the same room"


@pytest.mark.parametrize(("max_num_blocks", "longest"), [(0, 64), (5, 80), (1000, 128)])
def test_no_context_is_measured_that_the_cache_cannot_hold(llama: Path, max_num_blocks: int, longest: int) -> None:
    """Shards with room for different numbers of blocks run the same numbers of tokens."""
    (settings,) = measured_settings(llama, Split(1, 1))
    limits = limits_to_measure(settings, max_num_blocks)
    assert limits.max_model_len == longest
    widest_step, longest_step = largest_steps(limits, vocab_size=32)
    assert (len(widest_step.token_ids), longest_step.num_tokens) == (64, [64])


def test_a_given_size_is_not_measured(llama: Path) -> None:
    settings = cast(ShardSettings, shard_settings(llama, Split(1, 1))[0])
    engine = GenerationEngine(settings, CPU)
    report = engine.load(LoneCommunicator())
    assert not engine.is_measured
    assert report.num_blocks > 0


def test_a_shard_says_how_its_kernels_were_compiled(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = cast(ShardSettings, shard_settings(llama, Split(1, 1))[0])
    report = GenerationEngine(settings, CPU).load(LoneCommunicator())
    assert (report.compiled, report.attention) == ("none (off)", "reference")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    report = GenerationEngine(replace(settings, is_compiled=True), CPU).load(LoneCommunicator())
    assert (report.compiled, report.attention) == ("none (no C++ compiler: no-such-compiler)", "reference")
    named = replace(settings, is_compiled=True, linear_kernel="compiled")
    with pytest.raises(ConfigError, match="no-such-compiler"):
        GenerationEngine(named, CPU).load(LoneCommunicator())


def test_a_shard_takes_compiled_kernels(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = kernels_or_skip()
    monkeypatch.setattr(generation_engine, "compiled_kernels", lambda *_arguments: CompiledChoice(kernels, "kept"))
    settings = cast(ShardSettings, shard_settings(llama, Split(1, 1))[0])
    report = GenerationEngine(replace(settings, is_compiled=True), CPU).load(LoneCommunicator())
    assert (report.compiled, report.attention) == ("kept", "compiled")


def test_no_room_leaves_no_block(llama: Path) -> None:
    (settings,) = measured_settings(llama, Split(1, 1))
    engine = GenerationEngine(settings, CPU, FakeMemory(total=300 * MIB, weights=100 * MIB, passing=10 * MIB))
    engine.load(LoneCommunicator())
    assert engine.measure() == 0


@pytest.mark.parametrize("split", [Split(2, 1), Split(1, 2)], ids=str)
def test_all_shards_of_a_group_measure_together(llama: Path, split: Split) -> None:
    settings = measured_settings(llama, split)
    store = open_store("127.0.0.1", 60.0)
    rendezvous = Rendezvous("127.0.0.1", store.port, 60.0, 60.0)
    engines: list[GenerationEngine] = []  # they keep the connections: what is sent last may still be on its way

    def load_and_measure(index: int) -> int:
        shard = settings[index].shard
        own_store = store if index == 0 else connect_store(rendezvous)
        communicator: Communicator = GroupCommunicator(own_store, shard, rendezvous, CPU, "127.0.0.1")
        engine = GenerationEngine(settings[index], CPU, FakeMemory(total=1000 * MIB, weights=100 * MIB * (1 + index)))
        engines.append(engine)
        engine.load(communicator)
        return engine.measure()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load_and_measure, range(2))
    assert first > second > 0


class FailingRunner:
    """Has no memory for any step."""

    def run(self, step: StepInput) -> StepOutput | None:
        raise torch.OutOfMemoryError(f"no memory for step {step.step_id}")


def test_a_step_that_does_not_fit_is_refused_with_what_to_lower() -> None:
    make_runner: Callable[[EngineLimits], StepRunner[StepInput]] = lambda _limits: FailingRunner()  # noqa: E731
    memory = FakeMemory(total=1000 * MIB, weights=700 * MIB)
    with pytest.raises(ConfigError, match=r"engine\.max_num_batched_tokens=64 .* weights of 734003200; lower them"):
        measure_memory(make_runner, LIMITS, vocab_size=32, block_bytes=1024, memory=memory)
