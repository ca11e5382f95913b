"""What `rayshard validate` says of the kernels of linear layers."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.kernel_process import describe_kernels, run_group
from serve_app.cli.main import main
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError


def config(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "m", "source": "m", "device": {"cpu_threads": 1}, **changes})


@pytest.mark.process
def test_validating_tells_it_beside_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["validate", "serve_config.yaml"]) == 0
    *_, blank, last = capsys.readouterr().out.splitlines()
    assert blank == ""
    assert last.startswith("linear layers of generators in bfloat16, threads=")


def test_nothing_is_asked_where_nothing_is_chosen() -> None:
    named = config(engine={"linear_kernel": "torch"})
    module = config(architecture="package.module:Class", task="predict")
    on_gpu = config(device={"type": "cuda"})
    assert describe_kernels([(named, "float32"), (module, "float32"), (on_gpu, "bfloat16")]) == []


@pytest.mark.process
def test_a_compiled_kernel_that_cannot_be_had_is_refused_as_loading_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    named = config(engine={"linear_kernel": "compiled"})
    with pytest.raises(ConfigError, match=r"not compiled here \(no C\+\+ compiler: no-such-compiler\); use auto"):
        describe_kernels([(named, "float32")])


@pytest.mark.process
def test_validating_fails_with_that_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    served, model = Path("serve_config.yaml").read_text(), Path("examples/demo_model/model").resolve()
    split = "parallel: {pipeline: 2, tensor: 1}"
    assert split in served
    named = served.replace("examples/demo_model/model", str(model))
    (tmp_path / "serve.yaml").write_text(named.replace(split, "engine: {linear_kernel: compiled}"))
    assert main(["validate", str(tmp_path / "serve.yaml")]) == 1
    assert "engine.linear_kernel=compiled cannot be had" in capsys.readouterr().err


@pytest.mark.process
def test_what_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    with pytest.raises(subprocess.TimeoutExpired):
        run_group(["sh", "-c", f"exec >{pipe}; echo started; sleep 600 & wait"], 0.5)
    with os.fdopen(reading) as held:
        assert held.read() == "started\n"  # and its end: nobody has the pipe open any more


@pytest.mark.process
def test_a_process_tells_how_it_ended_and_what_it_said() -> None:
    assert run_group(["sh", "-c", "echo one; echo two >&2; exit 4"], 30.0) == (4, ["one"], ["two"])


@pytest.mark.process
def test_each_dtype_and_use_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = [(config(), "float32"), (config(name="n"), "float32"), (config(task="embed"), "float32")]
    lines = describe_kernels(models)
    others = r"gemv [\d./]+, onednn [\d./]+, torch [\d./]+\)"
    first = r"(torch|gemv|onednn|compiled) \(ms at 1/8/32/128 rows: (compiled [\d./]+, )?"
    assert len(lines) == 2
    assert re.fullmatch(f"linear layers of generators in float32, threads=1: {first}{others}", lines[0])
    assert re.fullmatch(
        rf"linear layers of encoders in float32, threads=1: (torch|gemv|onednn) \(.*: {others}", lines[1]
    )
