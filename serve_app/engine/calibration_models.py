"""Small random llamas that a CPU is measured by: their steps, run as the engine runs them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve_app.engine.attention.choice import DecodeSizes, attention_of
from serve_app.engine.kernel_choice import AUTO
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.models.compiled.library import CompiledKernels
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.generation import SamplingParams
from serve_app.types.shards import EngineLimits, ShardSpec
from serve_app.types.steps import SequenceStart, StepInput

CHUNK_TOKENS = 256  # of a prompt
MAX_STEPS = 12  # of one measurement

_CPU = torch.device("cpu")
_HEAD_DIM = 64
_BLOCK_SIZE = 16
_MIN_STEPS = 3  # the first warms up
_LONG_S = 0.5  # needs no more


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Of a random llama. num_heads: None: as many as make up hidden_size; num_kv_heads: None: one for each of them."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int | None = None
    num_kv_heads: int | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors, by name."""
        hidden, inner = self.hidden_size, 3 * self.hidden_size
        num_heads, num_kv_heads = self._heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (self.vocab_size, hidden),
        }
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            shapes[f"{prefix}.self_attn.q_proj.weight"] = (num_heads * _HEAD_DIM, hidden)
            shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (num_kv_heads * _HEAD_DIM, hidden) for name in "kv"}
            shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, num_heads * _HEAD_DIM)
            shapes |= {f"{prefix}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
            shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
            shapes |= {f"{prefix}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        return shapes

    @property
    def num_numbers(self) -> int:
        """Of what a step multiplies by."""
        return sum(
            shape[0] * shape[1] for name, shape in self.shapes.items() if len(shape) == 2 and "embed" not in name
        )

    @property
    def num_kv_numbers(self) -> int:
        """Keys and values of a token, of all layers."""
        return 2 * self.num_layers * self._heads[1] * _HEAD_DIM

    @property
    def num_sharing(self) -> int:
        """Heads that share a head of keys and values."""
        num_heads, num_kv_heads = self._heads
        return num_heads // num_kv_heads

    @property
    def _heads(self) -> tuple[int, int]:
        num_heads = self.num_heads or max(1, self.hidden_size // _HEAD_DIM)
        return num_heads, self.num_kv_heads or num_heads

    def write(self, directory: Path) -> None:
        """A checkpoint with random weights."""
        num_heads, num_kv_heads = self._heads
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden_size,
            "intermediate_size": 3 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": _HEAD_DIM,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        }
        generator = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in self.shapes.items()}
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


class CalibrationModel:
    """A loaded one, whose steps are timed.

    num_sequences, max_tokens: that it has room for, and of each. kernels: that were compiled, if any.
    """

    def __init__(
        self,
        directory: Path,
        size: ModelSize,
        dtype: str,
        clock: Callable[[], float],
        kernels: CompiledKernels | None,
        *,
        num_sequences: int,
        max_tokens: int,
    ) -> None:
        shard = ShardSpec(0, 1, 0, 1, 0, size.num_layers)
        loaded = load_stage(directory, dtype, shard, LoneCommunicator(), _CPU, linear_kernel=AUTO, compiled=kernels)
        self.size = size
        self._clock = clock
        self._blocks_each = -(-max_tokens // _BLOCK_SIZE)
        self._num_sequences = num_sequences
        num_blocks = num_sequences * self._blocks_each
        limits = EngineLimits(num_sequences, CHUNK_TOKENS, max_tokens, _BLOCK_SIZE, num_blocks)
        sizes = DecodeSizes(_BLOCK_SIZE, max_tokens, num_sequences)
        backend = attention_of("auto", loaded.stage, sizes, _CPU, kernels).backend
        self._runner = ModelRunner(loaded.stage, limits, LoneCommunicator(), _CPU, backend)
        self._num_steps = 0

    def step_s(self, num_sequences: int, num_tokens: int, num_before: int = 0) -> float:
        """The shortest step of so many sequences with so many tokens each behind those that are in the cache.

        Of one token each: a step that decodes, and the next ones. Of more: of a prompt, again and again.
        """
        seconds: list[float] = []
        while len(seconds) < _MIN_STEPS or (len(seconds) < MAX_STEPS and sum(seconds) < _LONG_S):
            index = len(seconds) if num_tokens == 1 else 0
            step = self._step(num_sequences, num_tokens, num_before + index, is_new=index == 0)
            begin = self._clock()
            self._runner.run(step)
            seconds.append(self._clock() - begin)
        return min(seconds[1:])

    def fill(self, num_tokens: int) -> None:
        """Give each sequence keys and values of so many tokens: memory that nobody has written to reads too fast."""
        for first in range(0, num_tokens, CHUNK_TOKENS):
            self._runner.run(self._step(1, min(CHUNK_TOKENS, num_tokens - first), first, is_new=first == 0))
        num_blocks = -(-num_tokens // _BLOCK_SIZE)
        copies = [
            (block, row * self._blocks_each + block)
            for row in range(1, self._num_sequences)
            for block in range(num_blocks)
        ]
        self._runner.run(self._step(1, 1, 0, is_new=True, copies=copies))

    def _step(
        self,
        num_sequences: int,
        num_tokens: int,
        num_computed: int,
        *,
        is_new: bool,
        copies: list[tuple[int, int]] | None = None,
    ) -> StepInput:
        self._num_steps += 1
        each = self._blocks_each
        blocks = [list(range(row * each, (row + 1) * each)) for row in range(num_sequences)]
        return StepInput(
            step_id=self._num_steps,
            starts=[_start(row) for row in range(num_sequences)] if is_new else [],
            slot_rows=list(range(num_sequences)),
            num_tokens=[num_tokens] * num_sequences,
            num_computed=[num_computed] * num_sequences,
            new_blocks=blocks if is_new else [[] for _ in blocks],
            token_ids=[self._num_steps % 7 + 1] * (num_sequences * num_tokens),
            samples=[True] * num_sequences,
            copies=copies or [],
        )


def _start(slot_row: int) -> SequenceStart:
    return SequenceStart(slot_row, 0, SamplingParams(64, seed=0, temperature=0.0, ignore_eos=True), [], 0, [], 0)
