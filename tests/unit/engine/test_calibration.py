"""The device that measuring this CPU gives: what `rayshard plan` reads."""

import json

import torch

from serve_app.engine.calibration import ModelSize, measure_cpu
from serve_app.planning.device_profiles import load_profiles, measured_profile


def test_what_is_measured_is_a_device_that_planning_reads() -> None:
    torch.set_num_threads(1)
    measured = measure_cpu(ModelSize(2, 64, 64), ModelSize(1, 128, 64))
    profile = measured_profile(load_profiles()["cpu"], json.loads(json.dumps(measured)))
    assert profile.type == "cpu"
    assert profile.network_bandwidth == load_profiles()["cpu"].network_bandwidth
    assert profile.weights_s_per_gb.keys() == {"float32", "bfloat16"}
    for curve in profile.weights_s_per_gb.values():
        assert sorted(curve) == [1, 8, 32, 256]
        assert all(seconds > 0 for seconds in curve.values())
    assert profile.layer_overhead_s > 0


def test_the_numbers_a_step_multiplies_by_are_those_of_its_matrices() -> None:
    assert ModelSize(2, 64, 100).num_numbers == 2 * (4 * 64 * 64 + 9 * 64 * 64) + 100 * 64
