"""`rayshard config`: the file it prints is valid as it is, and so is each line of it that is commented out."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import schema

from serve_app.cli.config_markdown import markdown
from serve_app.cli.config_starter import starter
from serve_app.cli.main import build_parser, main
from serve_app.cli.setting_facts import settings_of
from serve_app.config.engine import DeviceConfig, EngineConfig, ParallelConfig, TimeoutConfig
from serve_app.config.failover import FailoverConfig
from serve_app.config.gateway import GatewayConfig
from serve_app.config.model import ModelConfig
from serve_app.config.variables import VARIABLES
from serve_app.planning.serve_file import check_serve_file

ROOT = Path(__file__).parents[3]
SETTING = re.compile(r"( *)#(- )?(\w+):")


NEEDED = (("#quantization:", "#scheme:"), ("#autoscaling:", "#max_replicas:"), ("#batches:", "#directory:"))


def problems_of(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [str(one) for one in check_serve_file(path)]


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def without_mark(lines: list[str], index: int) -> str:
    """The file with one setting no longer commented out, nor the groups that it is in, nor what a group needs."""
    shown = [index]
    for above in range(index - 1, -1, -1):
        if SETTING.match(lines[above]) and indent_of(lines[above]) < indent_of(lines[shown[-1]]):
            shown.append(above)
    for group, needed in NEEDED:
        if any(lines[one].lstrip().startswith(group) for one in shown):
            shown.append(next(at for at, line in enumerate(lines) if line.lstrip().startswith(needed)))
    return "\n".join(line.replace("#", "", 1) if at in shown else line for at, line in enumerate(lines))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("task", ["generate", "embed", "classify", "score", "predict"])
def test_each_line_can_be_set_or_says_why_not(tmp_path: Path, task: str, device: str) -> None:
    lines = starter("chat", "/models/chat", task, device).split("\n")
    assert problems_of(tmp_path / "plain.yaml", "\n".join(lines)) == []
    marked = [at for at, line in enumerate(lines) if SETTING.match(line)]
    assert len(marked) > 50
    for at in marked:
        name = SETTING.match(lines[at])
        assert name is not None
        is_group = lines[at].endswith(":") or name[2] == "- " or name[3] == "scheme"
        if is_group:
            continue
        remarks = " ".join(line.strip(" #") for line in lines[max(0, at - 4) : at])
        told = problems_of(tmp_path / "set.yaml", without_mark(lines, at))
        allowed = "Not here:" in remarks or "quality asks for nothing" in " ".join(told)
        assert told == [] or allowed, (lines[at], told)


def test_a_setting_without_a_value_says_too_why_it_cannot_be_set() -> None:
    text = starter("chat", "/models/chat", "embed", "cpu")
    for name in ("kv_cache_bytes", "max_num_prefill_tokens", "block_size"):
        reason = f"# Not here: {name} has no effect on task=embed: no KV cache is kept; remove it\n"
        assert re.search(rf"{reason} *#{name}: ", text), name


def test_serve_takes_it_too_with_autoscaling() -> None:
    lines = starter("chat", "/models/chat", "generate", "cpu").split("\n")
    last = max(at for at, line in enumerate(lines) if line.strip() == "#deployments:")
    shown = [line.replace("#", "", 1) if SETTING.match(line) and at >= last else line for at, line in enumerate(lines)]
    content = schema.ServeDeploySchema.model_validate(yaml.safe_load("\n".join(shown)))
    scaling = content.applications[1].deployments[0].autoscaling_config
    assert schema.AutoscalingConfig.model_validate(scaling).max_replicas == 1


def test_every_setting_of_ours_is_in_it() -> None:
    text = starter("chat", "/models/chat", "generate", "cpu")
    ours = (GatewayConfig, FailoverConfig, ModelConfig, ParallelConfig, DeviceConfig, EngineConfig, TimeoutConfig)
    for model in ours:
        for setting in settings_of(model):
            assert re.search(rf"^ *#?{setting.name}:", text, re.MULTILINE), setting.name


def test_what_it_prints_is_valid_where_it_is_meant_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["config"]) == 0
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = tmp_path / "serve.yaml"
    path.write_text(capsys.readouterr().out)
    assert main(["validate", "--elsewhere", str(path)]) == 0
    assert f"ok {path}: 1 model behind http://127.0.0.1:8000" in capsys.readouterr().out


def test_name_and_source_are_taken_as_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--model", "/models/my chat/", "--task", "embed", "--device", "cuda"]) == 0
    applications: list[dict[str, Any]] = yaml.safe_load(capsys.readouterr().out)["applications"]
    expected = {"name": "my-chat", "source": "/models/my chat/", "task": "embed", "device": {"type": "cuda"}}
    assert applications[1]["args"] == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--task", "embed"], "--task embed needs --model SOURCE: the demo model generates"),
        (["--name", "a b"], "--name: name='a b' cannot be a model's name"),
        (["--model", " x"], "--model: source=' x' is blank or has stray spaces"),
    ],
)
def test_what_makes_no_file_is_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *options]) == 1
    assert told in capsys.readouterr().err


def test_the_document_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--markdown"]) == 0
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert capsys.readouterr().out == written, "write it anew: make settings"


def test_every_option_is_described() -> None:
    commands = markdown(build_parser()).partition("## Commands")[2]
    rows = [row.split(" | ") for row in commands.split("\n") if row.startswith("| `")]
    assert len(rows) > 90
    assert [row[0] for row in rows if not row[1].strip("| ")] == []


def test_every_variable_that_the_code_names_is_described() -> None:
    families = "RAY|RAYSHARD|HF|XDG|CUDA|TRANSFORMERS|OPENAI|MALLOC|METRICS_RECORD|REPORTER"
    pattern = re.compile(rf"[\"']((?:{families})_\w+|PYTHONUNBUFFERED|CXX)[\"']")
    files = [path for path in (ROOT / "serve_app").rglob("*.py") if path.name != "variables.py"]
    named = {name for path in files for name in pattern.findall(path.read_text())}
    known = {one.name for one in VARIABLES}
    assert named - known == set()
    built = {one for one in known if one.startswith(("RAY_SERVE_FALLBACK", "RAY_SERVE_HAPROXY"))} | {"TMPDIR"}
    assert known - named - built == set()
