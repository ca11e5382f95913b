"""The device that measuring this CPU gives: what `rayshard plan` reads."""

import json
import time

import pytest
import torch

from serve_app.engine.calibration import CalibrationSizes, CpuMeter
from serve_app.engine.calibration_models import ModelSize
from serve_app.planning.device_profiles import load_profiles, measured_profile
from tests.compiled import kernels_or_skip

TINY = CalibrationSizes(
    small=ModelSize(2, 64, 64),
    large=ModelSize(1, 128, 64),
    attending=ModelSize(1, 64, 64, num_heads=2, num_kv_heads=2),
    sharing=ModelSize(1, 64, 64, num_heads=2, num_kv_heads=1),
    num_attending=4,
    context_tokens=512,
)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["torch", "compiled kernels"])
def test_what_is_measured_is_a_device_that_planning_reads(is_compiled: bool) -> None:
    torch.set_num_threads(1)
    measured = CpuMeter(TINY, time.process_time, kernels_or_skip() if is_compiled else None).measure()
    profile = measured_profile(load_profiles()["cpu"], json.loads(json.dumps(measured)))
    assert profile.type == "cpu"
    assert profile.network_bandwidth == load_profiles()["cpu"].network_bandwidth
    for curves, rows in (
        (profile.weights_s_per_gb, [1, 4, 8, 16, 32, 256]),
        (profile.attention_s_per_gb, [1, 2, 256, 512]),
    ):
        assert curves.keys() == {"float32", "bfloat16"}
        for curve in curves.values():
            assert sorted(curve) == rows
            assert all(seconds > 0 for seconds in curve.values())
    assert profile.layer_overhead_s > 0
