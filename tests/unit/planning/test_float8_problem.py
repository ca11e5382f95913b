"""Float8 on GPUs that have no such products is refused before anything is loaded."""

from pathlib import Path

import pytest
import torch

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.checkpoints.quantized_modules import CheckpointQuantization, Target
from serve_app.engine.loader import load_stage
from serve_app.errors import ConfigError
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.float8_problem import float8_problem
from serve_app.planning.machine import capability_of
from serve_app.types.shards import LoadQuantization, WeightScheme
from tests.plain_driver import WHOLE
from tests.quantized_checkpoints import make_model, pack_float8

FP8 = WeightScheme(8, is_float=True, has_quantized_inputs=True)
BLOCKS = WeightScheme(8, is_float=True, group_size=128, has_quantized_inputs=True, block_rows=128)
INT8 = WeightScheme(8, has_quantized_inputs=True)


def stored(scheme: WeightScheme) -> CheckpointQuantization:
    return CheckpointQuantization("fp8", (((Target("Linear"),), scheme),), ())


@pytest.mark.parametrize(
    ("gpu", "is_able"), [("T4", False), ("A100", False), ("A10G", False), ("L4", True), (None, True)]
)
def test_older_gpus_are_refused_with_what_to_use_instead(gpu: str | None, is_able: bool) -> None:
    wanted = float8_problem(None, LoadQuantization(FP8), capability_of(gpu))
    given = float8_problem(stored(FP8), None, capability_of(gpu))
    assert (wanted is None, given is None) == (is_able, is_able)
    if not is_able:
        assert wanted is not None
        assert given is not None
        assert "use int8" in wanted
        assert "unquantized model with quantization.scheme=int8" in given


def test_what_is_made_whole_before_it_is_multiplied_is_for_any_gpu() -> None:
    assert float8_problem(stored(BLOCKS), None, (8, 0)) is None
    assert float8_problem(stored(INT8), None, (7, 5)) is None
    assert float8_problem(None, LoadQuantization(INT8), (7, 5)) is None
    assert float8_problem(None, None, (7, 5)) is None


@pytest.mark.parametrize("is_stored", [False, True], ids=["wanted", "stored"])
def test_a_shard_refuses_before_it_touches_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    directory = make_model("llama", tmp_path / "plain")
    if is_stored:
        directory = pack_float8(directory, tmp_path / "packed", {"quant_method": "fp8"})
        assert read_model_spec(directory).quantization is not None
    with pytest.raises(ConfigError, match=r"compute capability 8\.9 or later .* this GPU has 8\.0; (use|give)"):
        load_stage(
            directory,
            "float32",
            WHOLE,
            LoneCommunicator(),
            torch.device("cuda"),
            None if is_stored else LoadQuantization(FP8),
        )
