"""bench/gpu.py runs where only torch and transformers are installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu_part import PART_LIMITS_S

ROOT = Path(__file__).parents[3]
STRANGERS = ("ray", "zmq", "msgspec", "pydantic", "starlette")
# Python imports a module of this name at its start: from then on the strangers are as if not installed.
BLOCKER = f"""
import importlib.machinery, sys

class Blocker(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {STRANGERS} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Blocker
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "blocker").mkdir()
    (tmp_path / "blocker" / "sitecustomize.py").write_text(BLOCKER)
    paths = os.pathsep.join([str(tmp_path / "blocker"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OUT": str(tmp_path)}


@pytest.mark.process
def test_the_blocker_blocks(environment: dict[str, str]) -> None:
    for name in STRANGERS:
        finished = subprocess.run([sys.executable, "-c", f"import {name}"], env=environment, capture_output=True)
        assert f"No module named '{name}'".encode() in finished.stderr


@pytest.mark.process
def test_batch_models_need_neither_ray_nor_links(tmp_path: Path, environment: dict[str, str]) -> None:
    make = "from tests.encoder_checkpoints import make_encoder; from pathlib import Path; "
    make += f"make_encoder('bert', Path({str(tmp_path / 'bert')!r}), is_classifier=False)"
    run = f"""
import torch
from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.batch_runner import BatchRunner
from serve_app.engine.tensors import to_data, to_tensor
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import BatchModelSettings, ShardSpec
from serve_app.types.steps import BatchStep
shard, lone, cpu = ShardSpec(0, 1, 0, 1, 0, 4), LoneCommunicator(), torch.device("cpu")
stage = load_batch_stage(BatchModelSettings("m", {str(tmp_path / "bert")!r}, "embed", "auto", shard), lone, cpu)
inputs = {{"input_ids": [5, 6, 7], "lengths": [1, 2], "token_type_ids": [0, 0, 0]}}
step = BatchStep(0, 0, {{name: to_data(torch.tensor(values)) for name, values in inputs.items()}})
print(to_tensor(BatchRunner([stage], shard, lone, cpu).run(step).outputs["embedding"], cpu).shape)
"""
    for code in (make, run):
        command = [sys.executable, "-c", code]
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert finished.returncode == 0, finished.stderr
    assert "torch.Size([2, 32])" in finished.stdout


@pytest.mark.process
def test_the_whole_check_needs_neither_ray_nor_links(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "parity holds" in finished.stdout
    assert "not on cpu: nothing is captured there" in finished.stdout
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["parity"]["num_sequences"] == 16
    assert [row["batch_size"] for row in report["decode"]] == [1, 8, 64]
    assert all(row["tokens_per_s"] > 0 and row["transformers_tokens_per_s"] > 0 for row in report["decode"])
    assert list(report["parts"]) == list(PART_LIMITS_S)
    assert all(report[name] for name in PART_LIMITS_S)
    assert not any(part["error"] or part["problems"] for part in report["parts"].values())


@pytest.mark.process
def test_a_device_that_is_not_there_is_told_with_exit_status_1(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--device", "cuda:7", "--only", "sampler", "nccl"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert "0 of 2 parts hold" in finished.stdout
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert all("did not reach the device" in part["error"] for part in parts.values())
