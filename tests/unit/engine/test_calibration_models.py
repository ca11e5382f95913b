"""The models that a CPU is measured by."""

from pathlib import Path

import torch

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.engine.calibration_models import CalibrationModel, ModelSize

SHARING = ModelSize(2, 64, 32, num_heads=4, num_kv_heads=2)


class Clock:
    """Each look takes so long."""

    def __init__(self) -> None:
        self.num_looks = 0

    def __call__(self) -> float:
        self.num_looks += 1
        return 0.25 * self.num_looks


def model_of(directory: Path, clock: Clock) -> CalibrationModel:
    SHARING.write(directory)
    return CalibrationModel(directory, SHARING, "float32", clock, None, num_sequences=3, max_tokens=300)


def test_the_numbers_a_step_multiplies_by_are_those_of_its_matrices() -> None:
    assert ModelSize(2, 64, 100).num_numbers == 2 * (4 * 64 * 64 + 9 * 64 * 64) + 100 * 64
    assert SHARING.num_numbers == 2 * (2 * 64 * 256 + 2 * 64 * 128 + 9 * 64 * 64) + 32 * 64


def test_a_checkpoint_has_the_heads_that_it_is_to_have(tmp_path: Path) -> None:
    SHARING.write(tmp_path / "model")
    spec = read_model_spec(tmp_path / "model")
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (4, 2, 64)
    assert SHARING.num_kv_numbers == 2 * 2 * 2 * 64
    assert SHARING.num_sharing == 2


def test_steps_are_timed_until_there_were_enough_and_the_first_does_not_count(tmp_path: Path) -> None:
    clock = Clock()
    assert model_of(tmp_path / "model", clock).step_s(2, 1) == 0.25
    assert clock.num_looks == 6


def test_all_sequences_look_back_at_what_the_first_one_has_computed(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", Clock())
    model.fill(290)
    cache = model._runner._cache
    for keys in cache.keys:
        by_row = keys.view(3, -1, *keys.shape[1:])[:, :290]
        assert torch.equal(by_row[1], by_row[2])
        assert torch.equal(by_row[0, 1:], by_row[1, 1:])
        assert by_row[1].ne(0).any(dim=-1).all()
