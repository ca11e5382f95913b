"""`rayshard train --num-workers`: several real workers of Ray Train learn what one process learns."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from serve_app.compress.student import smaller_config
from tests.quantized_checkpoints import make_model
from tests.unit.training.test_text_training import ROWS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIZES = "--hidden-size 8 --embedding-dim 8 --learning-rate 0.02 --batch-size 31"  # no batch can be halved
EXACT = "--dropout 0 --word-dropout 0.1 --max-epochs 4"


@pytest.fixture
def directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="rt-"))  # short: Ray's sockets have long names
    (directory / "rows.csv").write_text("text,label\n" + "".join(f"{row.text},{row.label}\n" for row in ROWS))
    yield directory
    shutil.rmtree(directory)


def start(directory: Path, name: str, options: str, num_workers: int) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("rayshard")), "train", "rows.csv", name, *SIZES.split()]
    command += [*options.split(), "--num-workers", str(num_workers)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_TMPDIR": str(directory), "TMPDIR": str(directory)}
    return subprocess.Popen(
        command, cwd=directory, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def start_distilling(directory: Path, name: str, options: str, num_workers: int) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("rayshard")), "compress", "distill", "teacher", name]
    command += ["--student", "student.json", "--texts", "texts.txt", "--unlabelled", "texts.txt"]
    command += [*options.split(), "--num-workers", str(num_workers)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_TMPDIR": str(directory), "TMPDIR": str(directory)}
    return subprocess.Popen(
        command, cwd=directory, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _none = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "ray::RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def test_two_workers_learn_what_one_process_learns(directory: Path) -> None:
    finish(start(directory, "one", EXACT, 1))
    output = finish(start(directory, "two", EXACT, 2))
    assert "4 epochs" in output
    one, two = (load_file(directory / name / "model.safetensors") for name in ("one", "two"))
    untrained = 0.1  # what these steps change is more than that
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-4), name
    assert max(float((tensor - tensor.mean()).abs().max()) for tensor in one.values()) > untrained


def test_the_death_of_a_worker_costs_an_epoch_and_not_the_training(directory: Path) -> None:
    process = start(directory, "model", "--max-epochs 40 --patience 40", 2)
    deadline = time.monotonic() + 120
    while not list(directory.glob("rayshard-train-*/rayshard/checkpoint_*/snapshot.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim = workers_of(process)[-1]
    os.kill(victim, signal.SIGKILL)
    output = finish(process)
    assert "40 epochs" in output
    assert "validation rows 1.000" in output


@pytest.fixture
def lesson(directory: Path) -> Path:
    teacher = make_model("llama", directory / "teacher")
    smaller_config(teacher, directory / "student.json", 2)
    (directory / "texts.txt").write_text("the cat sat on the mat\nanother line, somewhat longer\na third\n" * 4)
    return directory


def test_two_workers_distill_what_one_process_distills(lesson: Path) -> None:
    options = "--steps 6 --batch-tokens 50"  # three sequences of a kind: no batch can be halved
    finish(start_distilling(lesson, "one", options, 1))
    output = finish(start_distilling(lesson, "two", options, 2))
    assert "in 6 steps" in output
    one, two, three = (load_file(lesson / name / "model.safetensors") for name in ("one", "two", "teacher"))
    assert all(torch.allclose(tensor, two[name], atol=2e-4) for name, tensor in one.items())
    assert set(one) < set(three)  # fewer layers


def test_the_death_of_a_worker_costs_the_steps_since_the_checkpoint(lesson: Path) -> None:
    process = start_distilling(lesson, "model", "--steps 400 --batch-tokens 50 --checkpoint run", 2)
    deadline = time.monotonic() + 120
    while not (lesson / "run" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    output = finish(process)
    (num_steps,) = (int(line.split(" in ")[-1].split()[0]) for line in output.splitlines() if " steps" in line)
    assert num_steps % 50 == 0  # the second run's: it began where a checkpoint was
    assert 0 < num_steps < 400
    assert (lesson / "model" / "model.safetensors").exists()
