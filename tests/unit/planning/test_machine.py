"""What Ray will find on this machine."""

from pathlib import Path

import pytest
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from serve_app.config.environment import read_environment
from serve_app.planning.machine import accelerator_type_of, find_accelerator_type, find_gpus, find_machine, find_memory


def test_gpus_are_counted_by_their_devices(tmp_path: Path) -> None:
    assert find_gpus(tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert find_gpus(tmp_path) == 2
    (tmp_path / "kfd").touch()
    assert find_gpus(tmp_path) is None


def test_the_type_is_that_of_the_first_gpu(tmp_path: Path) -> None:
    assert find_accelerator_type(tmp_path / "none") is None
    for address, product in (("0000:19:00.0", "Tesla T4"), ("0000:03:00.0", "NVIDIA H200")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "information").write_text(f"Model: \t\t {product}\nIRQ:   \t\t 17\nBus Type: \t PCIe\n")
    assert find_accelerator_type(tmp_path) == "H200"


def test_a_type_that_the_driver_does_not_know_yet_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "0000:03:00.0").mkdir()
    information = tmp_path / "0000:03:00.0" / "information"
    for text in ("Model: \t\t Unknown\n", "Model:\nIRQ: 17\n", ""):
        information.write_text(text)
        assert find_accelerator_type(tmp_path) is None


@pytest.mark.parametrize(
    "product",
    [
        "NVIDIA H200",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A10G",
        "NVIDIA L40S",
        "NVIDIA GB200",
        "Tesla V100-SXM2-16GB",
        "Tesla T4",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX A6000",
        "NVIDIA GeForce RTX 5090",
        "Quadro RTX 8000",
        "NVIDIA TITAN V",
    ],
)
def test_types_are_named_as_ray_names_them(product: str) -> None:
    assert accelerator_type_of(product) == NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(product)


@pytest.mark.parametrize(("visible", "most"), [(None, None), ("", 0), ("-1", 0), ("3", 1), ("0,2", 2)])
def test_cuda_visible_devices_bounds_the_gpus(visible: str | None, most: int | None) -> None:
    environment = read_environment({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert environment.max_visible_gpus == most


def test_a_machine_that_ray_is_told_of_is_not_looked_at() -> None:
    assert find_machine(read_environment({"RAY_OVERRIDE_RESOURCES": '{"CPU": 6000}'})) is None
    hidden = find_machine(read_environment({"CUDA_VISIBLE_DEVICES": ""}))
    assert hidden is not None
    assert hidden.num_cpus > 0
    assert hidden.num_gpus in (0, None)


def test_memory_is_the_machines_or_what_a_container_may_take(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    assert find_memory(meminfo, limit) is None
    meminfo.write_text("MemTotal:       24000000 kB\nMemFree:         1000000 kB\n")
    assert find_memory(meminfo, limit) == 24_000_000 * 1024
    limit.write_text("max\n")
    assert find_memory(meminfo, limit) == 24_000_000 * 1024
    limit.write_text("1000000000\n")
    assert find_memory(meminfo, limit) == 10**9
