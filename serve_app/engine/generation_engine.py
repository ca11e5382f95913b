"""The engine of a shard of a model that generates."""

import gc
import logging
from pathlib import Path

import torch

from serve_app.config.environment import read_environment
from serve_app.engine.attention.choice import AttentionChoice, DecodeSizes, attention_of
from serve_app.engine.decode_graphs import capture_on
from serve_app.engine.device_memory import CudaMemory, DeviceMemory, MemoryUse, kv_cache_bytes
from serve_app.engine.grammar_vocabulary import GrammarVocabulary
from serve_app.engine.grammars import Grammars
from serve_app.engine.kv_cache import kv_block_bytes
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.memory_guard import MemoryGuard
from serve_app.engine.memory_profile import limits_to_measure, measure_memory
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.shard_loop import ShardLoop
from serve_app.freed_memory import resident_bytes
from serve_app.models.compiled.build import CompiledChoice, compiled_kernels
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.transformers_model import TransformersStage
from serve_app.parallel.communicator import Communicator
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.plans import MemoryTaken
from serve_app.types.shards import EngineLimits, ShardReport, ShardSettings
from serve_app.types.steps import StepInput

logger = logging.getLogger(__name__)


class GenerationEngine:
    """ShardEngine of a model that generates.

    memory: of a device whose memory is counted; None: that of the GPU, where there is one.
    """

    def __init__(self, settings: ShardSettings, device: torch.device, memory: DeviceMemory | None = None) -> None:
        self._settings = settings
        self._device = device
        self._memory = CudaMemory(device) if memory is None and device.type == "cuda" else memory
        self._communicator: Communicator | None = None
        self._loaded: LoadedStage | None = None
        self._attention: AttentionChoice | None = None
        self._runner: ModelRunner | None = None
        self._grammars: Grammars | None = None

    def load(self, communicator: Communicator) -> ShardReport:
        """See ShardEngine."""
        settings = self._settings
        self._communicator = communicator
        compiled = self._compile()
        self._loaded = load_stage(
            Path(settings.source_dir),
            settings.dtype,
            settings.shard,
            communicator,
            self._device,
            settings.quantization,
            settings.max_model_len,
            settings.linear_kernel,
            compiled.kernels,
            compiled.how,
        )
        num_blocks = (settings.kv_cache_bytes or 0) // kv_block_bytes(self._loaded.stage, settings.block_size)
        self._attention = self._choose_attention(self._loaded.stage, compiled.kernels)
        if settings.shard.is_last and settings.shard.rank == 0 and settings.eos_token_ids:
            self._grammars = self._make_grammars(self._loaded.stage.config.vocab_size)
        return ShardReport(
            self._loaded.parameter_bytes,
            num_blocks,
            0.0,
            linear_kernel=str(self._loaded.kernel),
            attention=str(self._attention),
            compiled=str(compiled),
        )

    @property
    def is_measured(self) -> bool:
        """See ShardEngine."""
        return self._settings.kv_cache_bytes is None

    def measure(self) -> int:
        """See ShardEngine."""
        assert self._loaded is not None
        assert self._memory is not None, "engine.kv_cache_bytes is set where memory is not counted"
        settings, stage, memory = self._settings, self._loaded.stage, self._memory
        block_bytes = kv_block_bytes(stage, settings.block_size)
        memory.release()
        idle = MemoryUse(memory.total_bytes(), memory.free_bytes(), memory.held_bytes(), step_bytes=0)
        max_num_blocks = kv_cache_bytes(idle, settings.gpu_memory_utilization) // block_bytes
        limits = limits_to_measure(settings, max_num_blocks)
        use = measure_memory(self._make_runner, limits, stage.config.vocab_size, block_bytes, memory)
        return kv_cache_bytes(use, settings.gpu_memory_utilization) // block_bytes

    def allocate(self, limits: EngineLimits) -> None:
        """See ShardEngine."""
        assert self._attention is not None
        if self._settings.has_cuda_graphs and self._device.type == "cuda" and self._attention.backend is None:
            logger.info(
                "steps are not captured as graphs: attention=%s attends each sequence by itself", self._attention
            )
        self._runner = self._make_runner(limits)

    def memory_taken(self) -> MemoryTaken:
        """See ShardEngine."""
        runner, memory = self._runner, self._memory
        device_bytes = None if memory is None else memory.held_bytes()
        return MemoryTaken(0 if runner is None else runner.kv_cache_bytes, resident_bytes(), device_bytes)

    def forget(self) -> None:
        """See ShardEngine."""
        self._runner = None
        if self._grammars is not None:
            self._grammars.forget_all()
        if self._memory is not None:
            gc.collect()  # what was captured of the runner may refer to itself
            self._memory.release()

    def run(self, loop: ShardLoop) -> None:
        """See ShardEngine."""
        assert self._runner is not None
        is_lone = self._settings.shard.num_stages == self._settings.shard.num_ranks == 1
        if self._memory is None:  # of a CPU: each call returns when it is done
            loop.run(StepInput, self._runner, self._runner.busy, self._grammars)
        else:
            launcher = MemoryGuard(self._runner, self._memory.release) if is_lone else self._runner
            loop.run_ahead(launcher, self._runner.busy, self._grammars)

    def _make_runner(self, limits: EngineLimits) -> ModelRunner:
        assert self._loaded is not None
        assert self._communicator is not None
        assert self._attention is not None
        capture = capture_on(self._device) if self._settings.has_cuda_graphs else None
        return ModelRunner(
            self._loaded.stage,
            limits,
            self._communicator,
            self._device,
            self._attention.backend,
            capture,
            grammars=self._grammars,
        )

    def _make_grammars(self, vocab_size: int) -> Grammars:
        directory, eos_token_ids = self._settings.source_dir, self._settings.eos_token_ids

        def make_vocabulary() -> GrammarVocabulary:
            return GrammarVocabulary.of(Tokenizer.load(directory), vocab_size, eos_token_ids)

        make_event = torch.cuda.Event if self._device.type == "cuda" else None
        return Grammars(make_vocabulary, vocab_size, self._device, make_event)

    def _compile(self) -> CompiledChoice:
        if self._device.type != "cpu" or not self._settings.is_compiled:
            return CompiledChoice(None, "off")
        environment = read_environment()
        return compiled_kernels(environment.compiled_dir, environment.cxx_compiler)

    def _choose_attention(self, stage: TransformersStage, kernels: CompiledKernels | None) -> AttentionChoice:
        settings = self._settings
        max_model_len = settings.max_model_len or settings.max_num_batched_tokens
        sizes = DecodeSizes(settings.block_size, max_model_len, settings.max_num_seqs)
        return attention_of(settings.attention, stage, sizes, self._device, kernels)
