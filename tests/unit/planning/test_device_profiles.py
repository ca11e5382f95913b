"""The table of devices, and a user's own."""

from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.planning.device_profiles import find_profile, load_profiles


def test_the_packaged_devices_are_known_by_their_names_and_by_rays() -> None:
    profiles = load_profiles()
    assert {"h200", "h100", "a100", "l4", "rtx-4090", "cpu"} <= profiles.keys()
    assert find_profile(profiles, "H100") is profiles["h100"]
    assert find_profile(profiles, "A100-80G") is profiles["a100"]
    assert all(profile.memory is not None for profile in profiles.values() if profile.type == "cuda")


def test_a_file_adds_devices_and_replaces_them_by_name(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    one = "{memory: 192GB, memory_bandwidth: 8.0e+12, flops: {bfloat16: 2.25e+15}, link_bandwidth: 9.0e+11, "
    path.write_text(f"b200: {one}network_bandwidth: 5.0e+10}}\nl4: {one}network_bandwidth: 1.0e+10}}\n")
    profiles = load_profiles(path)
    assert profiles["b200"].memory == 192 * 10**9
    assert profiles["b200"].rate("bfloat16") == profiles["b200"].rate("float32") == 0.5 * 2.25e15
    assert profiles["l4"].network_bandwidth == 1e10
    assert profiles["h100"] == load_profiles()["h100"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu: {memory: 2GB}", "gpu.memory_bandwidth: missing; add it"),
        ("gpu: {memory: 2 bananas}", "gpu.memory: '2 bananas' is not a size; write a number of bytes"),
        ("gpu: {speed: 3}", "gpu.speed: unknown setting; remove it, or use one of type"),
        ("- gpu", "has no devices; write `name: {memory: ..., ...}`"),
        ("gpu: {", "not YAML"),
    ],
)
def test_what_is_wrong_in_such_a_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "more.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_profiles(path)
    assert expected in error.value.message
    assert str(path) in error.value.message


def test_an_unknown_device_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"device 'h1000' is not known; use h200, h100, .*, or describe it by --devi"):
        find_profile(load_profiles(), "h1000")


def test_measured_times_lie_between_those_of_the_nearest_rows_and_grow_with_rows_beyond() -> None:
    curve = {"float32": {1: 0.1, 9: 0.3, 100: 2.0}}
    profile = load_profiles()["cpu"].model_copy(update={"weights_s_per_gb": curve})
    assert [profile.weights_s("float32", rows, 2e9) for rows in (1, 5, 9, 200)] == pytest.approx([0.2, 0.4, 0.6, 8.0])
    assert profile.weights_s("bfloat16", 1, 2e9) is None
    assert profile.attention_s("float32", 1, 2e9) is None
