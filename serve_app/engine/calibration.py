"""What this CPU does with a model's steps, measured by the engine on two small random models, for `rayshard plan`.

Prints a device in the form of planning/devices.yaml. One model is nearly all overhead, the other nearly all weights.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve_app.engine.kernel_choice import AUTO
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.generation import SamplingParams
from serve_app.types.shards import EngineLimits, ShardSpec
from serve_app.types.steps import SequenceStart, StepInput

_CPU = torch.device("cpu")
_DTYPES = ("float32", "bfloat16")
_ROWS = (1, 8, 32, 256)  # of inputs that weights are multiplied by
_MAX_SEQUENCES = 32  # steps of more rows are those of a prompt
_BLOCK_SIZE = 16
_MIN_STEPS, _MAX_STEPS = 3, 12  # the first warms up
_LONG_S = 0.5  # needs no more
_GB = 1e9


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Of a random llama."""

    num_layers: int
    hidden_size: int
    vocab_size: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors, by name."""
        hidden, inner = self.hidden_size, 3 * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (self.vocab_size, hidden),
        }
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
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

    def write(self, directory: Path) -> None:
        """A checkpoint with random weights."""
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden_size,
            "intermediate_size": 3 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": max(1, self.hidden_size // 64),
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        }
        generator = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in self.shapes.items()}
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


_SMALL, _LARGE = ModelSize(16, 64, 256), ModelSize(3, 1024, 4096)


def measure_cpu(
    small_size: ModelSize = _SMALL, large_size: ModelSize = _LARGE, clock: Callable[[], float] = time.perf_counter
) -> dict[str, object]:
    """The device that this CPU is, with this process's threads."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        small_size.write(root / "small")
        large_size.write(root / "large")
        small = _Model(root / "small", small_size, "float32", clock)
        alone_s, together_s = small.step_s(1), small.step_s(_MAX_SEQUENCES)
        sequence_s = max(0.0, (together_s - alone_s) / (_MAX_SEQUENCES - 1)) / small_size.num_layers
        layer_s = max(0.0, alone_s / small_size.num_layers - sequence_s)
        del small
        curves: dict[str, dict[int, float]] = {}
        for dtype in _DTYPES:
            large = _Model(root / "large", large_size, dtype, clock)
            curves[dtype] = {rows: large.step_s(rows) - large.overhead_s(rows, layer_s, sequence_s) for rows in _ROWS}
            del large
    return _profile(large_size.num_numbers, curves, layer_s, sequence_s)


def _profile(
    num_numbers: int, curves: dict[str, dict[int, float]], layer_s: float, sequence_s: float
) -> dict[str, object]:
    num_bytes = {dtype: num_numbers * getattr(torch, dtype).itemsize for dtype in curves}
    last = _ROWS[-1]
    flops = {dtype: 2 * last * num_numbers / max(curve[last], 1e-6) for dtype, curve in curves.items()}
    return {
        "type": "cpu",
        "memory_bandwidth": float(num_bytes["float32"] / max(curves["float32"][1], 1e-6)),
        "flops": {**flops, "float16": min(flops.values())},
        "memory_share": 1.0,
        "compute_share": 1.0,
        "weights_s_per_gb": {
            dtype: {rows: max(seconds, 1e-6) / num_bytes[dtype] * _GB for rows, seconds in curve.items()}
            for dtype, curve in curves.items()
        },
        "layer_overhead_s": layer_s,
        "sequence_overhead_s": sequence_s,
    }


class _Model:
    def __init__(self, directory: Path, size: ModelSize, dtype: str, clock: Callable[[], float]) -> None:
        shard = ShardSpec(0, 1, 0, 1, 0, size.num_layers)
        loaded = load_stage(directory, dtype, shard, LoneCommunicator(), _CPU, linear_kernel=AUTO)
        self._size = size
        self._clock = clock
        self._limits = EngineLimits(_MAX_SEQUENCES, _ROWS[-1], 2048, _BLOCK_SIZE, num_blocks=_MAX_SEQUENCES * 128)
        self._runner = ModelRunner(loaded.stage, self._limits, LoneCommunicator(), _CPU)
        self._num_steps = 0

    def step_s(self, rows: int) -> float:
        """The shortest step that multiplies so many rows: of as many sequences that decode, or of one prompt."""
        num_sequences, num_tokens = (rows, 1) if rows <= _MAX_SEQUENCES else (1, rows)
        seconds: list[float] = []
        while len(seconds) < _MIN_STEPS or (len(seconds) < _MAX_STEPS and sum(seconds) < _LONG_S):
            step = self._step(num_sequences, num_tokens, len(seconds))
            begin = self._clock()
            self._runner.run(step)
            seconds.append(self._clock() - begin)
        return min(seconds[1:])

    def overhead_s(self, rows: int, layer_s: float, sequence_s: float) -> float:
        """What a step takes beside reading and multiplying."""
        num_sequences = rows if rows <= _MAX_SEQUENCES else 1
        return self._size.num_layers * (layer_s + num_sequences * sequence_s)

    def _step(self, num_sequences: int, num_tokens: int, index: int) -> StepInput:
        """Step `index` of new sequences; a prompt begins anew in each."""
        is_new = index == 0 or num_tokens > 1
        self._num_steps += 1
        blocks_each = self._limits.num_blocks // _MAX_SEQUENCES
        blocks = [list(range(row * blocks_each, (row + 1) * blocks_each)) for row in range(num_sequences)]
        return StepInput(
            step_id=self._num_steps,
            starts=[_start(row) for row in range(num_sequences)] if is_new else [],
            slot_rows=list(range(num_sequences)),
            num_tokens=[num_tokens] * num_sequences,
            num_computed=[0 if is_new else index] * num_sequences,
            new_blocks=blocks if is_new else [[] for _ in blocks],
            token_ids=[index % 7 + 1] * (num_sequences * num_tokens),
            samples=[True] * num_sequences,
        )


def _start(slot_row: int) -> SequenceStart:
    return SequenceStart(slot_row, 0, SamplingParams(64, seed=0, temperature=0.0, ignore_eos=True), [], 0, [], 0)


def main() -> None:
    """Print the device as JSON; the argument: threads of a shard."""
    torch.set_num_threads(int(sys.argv[1]))
    lines = Path("/proc/self/status").read_text().splitlines()
    reserve_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    print(json.dumps({**measure_cpu(), "reserve": 1024 * reserve_kib}))


if __name__ == "__main__":
    main()
