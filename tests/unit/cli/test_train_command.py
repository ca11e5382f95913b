"""`rayshard train` as it is typed: what it refuses before anything is spent, what it says, what it prints to paste."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from serve_app.cli.main import main
from serve_app.cli.train_command import yaml_of
from serve_app.config.model import ModelConfig
from tests.unit.training.test_text_training import ROWS

FAST = ["--max-epochs", "2", "--hidden-size", "8", "--embedding-dim", "8"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{row.text},{row.label}\n" for row in ROWS))
    return path


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-epochs", "0", "--threads", "0"], "--max-epochs 0 cannot be; give 1 or more\n--threads 0 cannot be"),
        (["--num-workers", "0"], "--num-workers 0 is not a number of workers"),
        (["--min-frequency", "999"], "the vocabulary is empty; give more texts, or a lower --min-frequency"),
    ],
)
def test_what_cannot_be_trained_is_refused_without_torch(
    rows: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    script = (
        "import sys; from serve_app.cli.main import main; status = main(sys.argv[1:]); "
        "sys.exit(9 if {'ray', 'torch'} & set(sys.modules) else status)"
    )
    command = [sys.executable, "-c", script, "train", str(rows), str(tmp_path / "model"), *options]
    root = Path(__file__).resolve().parents[3]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 1
    assert message in finished.stderr


@pytest.mark.process
def test_the_closing_lines_are_an_application_that_can_be_pasted(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "it's a model"
    assert main(["train", str(rows), str(directory), *FAST]) == 0
    pasted = capsys.readouterr().out.partition("a Serve file:\n")[2]
    path = tmp_path / "serve.yaml"
    gateway = "  - {name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}\n"
    path.write_text(f"applications:\n{gateway}{pasted}")
    assert main(["validate", str(path)]) == 0
    assert "it-s-a-model: serve_app.models.text_classifier:TextClassifier" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["模型", "-x-", "a" * 90, "a b.c"])
def test_the_name_to_paste_is_one_that_can_be_served(tmp_path: Path, name: str) -> None:
    (application,) = yaml.safe_load(yaml_of(tmp_path / name))
    config = ModelConfig.model_validate(application["args"])
    assert config.source == str(tmp_path / name)


def test_a_directory_that_is_a_file_is_refused(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for taken in ("file", "file/model"):
        assert main(["train", str(rows), str(tmp_path / taken), *FAST]) == 1
        assert "cannot be made" in capsys.readouterr().err


def test_a_loss_that_is_never_a_number_is_told(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda logits, _labels: logits.sum() * float("nan"))
    assert main(["train", str(rows), str(tmp_path / "model"), *FAST]) == 1
    assert "the validation loss of 2 epochs was never a finite number; give a lower" in capsys.readouterr().err


def test_many_unknown_tokens_of_the_held_out_rows_are_a_warning(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held_out.csv"
    held_out.write_text("text,label\nthe vermilion door,warm\nthe red door,purple\n")
    assert main(["train", str(rows), str(tmp_path / "model"), "--held-out", str(held_out), *FAST]) == 0
    told = capsys.readouterr().err
    assert "warning: 16.7% of the tokens of the 2 held-out rows are not in the vocabulary" in told
    assert f"warning: the held-out label 'purple' is not in {rows}; its rows count as wrong" in told
    assert "validation rows are not" not in told


def test_help_tells_meanings_bounds_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "share of the rows that tells when to end; above 0 to 0.5 (default: 0.15)" in told
    assert "--learning-rate X of Adam; above 0 to 1 (default: 0.003)" in told
