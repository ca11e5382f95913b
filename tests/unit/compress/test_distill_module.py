"""A small text classifier trained on a large one, by the command."""

import json
from pathlib import Path

import pytest

from serve_app.cli.main import main
from serve_app.compress.distill import DistillSettings
from serve_app.compress.modules import label_texts, load_classifier
from serve_app.compress.recipe import read_recipe
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.config.training import TrainingSettings
from serve_app.errors import ConfigError
from serve_app.planning.served_model import plan_batch_model
from serve_app.training.text_training import train
from tests.unit.training.test_text_training import ROWS

STEPS = ["--steps", "150", "--batch-tokens", "128", "--learning-rate", "0.02"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("teacher")
    settings = TrainingSettings(embedding_dim=16, hidden_size=16, max_epochs=8, word_dropout=0.05, learning_rate=0.02)
    train(ROWS, directory, settings)
    return directory


@pytest.fixture
def student(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"arguments": {"embedding_dim": 8, "hidden_size": 8}}))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("words,kind\n" + "".join(f"{row.text},{row.label}\n" for row in ROWS))
    return path


def distil(teacher: Path, target: Path, student: Path, texts: Path, *options: str) -> int:
    columns = ["--text-column", "words", "--label-column", "kind"]
    command = ["compress", "distill", str(teacher), str(target), "--student", str(student), "--texts", str(texts)]
    return main([*command, *columns, *STEPS, *options])


def test_a_smaller_classifier_learns_what_its_teacher_knows_and_is_served(
    teacher: Path, student: Path, labelled: Path, tmp_path: Path
) -> None:
    target = tmp_path / "small"
    assert distil(teacher, target, student, labelled) == 0
    config = json.loads((target / "config.json").read_text())
    assert config["arguments"]["hidden_size"] == 8
    assert config["id2label"] == {"0": "cold", "1": "warm"}
    assert (target / "model.safetensors").stat().st_size < 0.6 * (teacher / "model.safetensors").stat().st_size
    assert label_texts(teacher, target, ROWS).num_right >= 0.95 * len(ROWS)
    served = ModelConfig.model_validate({"name": "small", "source": str(target), "task": "classify"})
    plan = plan_batch_model(served, tmp_path, read_environment({"XDG_CACHE_HOME": str(tmp_path)}))
    assert plan.labels == ["cold", "warm"]
    assert read_recipe(target)[-1]["step"] == "distill"


def test_the_teacher_alone_is_enough(teacher: Path, student: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(row.text for row in ROWS))
    assert distil(teacher, tmp_path / "small", student, texts) == 0
    assert label_texts(teacher, tmp_path / "small", ROWS).agreement == 1.0


def test_a_directory_is_trained_on_and_the_same_seed_gives_the_same_bytes(
    teacher: Path, labelled: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        assert distil(teacher, tmp_path / name, teacher, labelled, "--steps", "2") == 0
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == again != (teacher / "model.safetensors").read_bytes()
    assert load_classifier(tmp_path / "a").outputs["logits"].shape == ("batch", 2)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"arguments": {"hiden": 4}}, [], "TextClassifier cannot be built of"),
        ({"arguments": {"vocab_size": 4}}, [], "has another vocab_size than its teacher; they must be one"),
        ({"arguments": {"num_labels": 5}}, [], "does not give the 2 logits that its teacher gives"),
        ({"architecture": "no.such:Thing"}, [], "architecture=no.such:Thing: no.such cannot be imported"),
        ({}, ["--teacher-url", "http://127.0.0.1:1/v1"], "--teacher-url has no effect on a plain module"),
        ({}, ["--num-workers", "2"], "--num-workers has no effect on a plain module"),
        ({}, ["--label-column", "words"], "has a label"),
    ],
)
def test_a_student_that_cannot_learn_is_refused(
    content: dict[str, object],
    options: list[str],
    message: str,
    teacher: Path,
    labelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    assert distil(teacher, tmp_path / "small", path, labelled, *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_settings_that_nothing_is_learnt_with_are_told_together() -> None:
    with pytest.raises(ConfigError) as refused:
        DistillSettings(num_steps=0, learning_rate=float("nan"), temperature=-1.0, kl_weight=float("inf")).check()
    told = [line.split(" cannot")[0] for line in refused.value.message.split("\n")]
    assert told == ["--steps 0", "--learning-rate nan", "--temperature -1", "--kl-weight inf"]
    DistillSettings().check()
