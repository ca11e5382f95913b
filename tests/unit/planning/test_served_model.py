"""Models whose directory names their class by itself."""

import json
import shutil
from pathlib import Path

import pytest

from serve_app.cli.check_file import check_file
from serve_app.config.environment import Environment, read_environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.served_model import plan_batch_model

TICKETS = Path(__file__).parents[3] / "examples" / "text_classifier" / "model"
CLASSIFIER = "serve_app.models.text_classifier:TextClassifier"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return read_environment({"XDG_CACHE_HOME": str(tmp_path)})


@pytest.mark.parametrize("task", ["classify", "predict"])
def test_a_directory_that_names_a_class_of_ours_needs_no_architecture(task: str, environment: Environment) -> None:
    config = ModelConfig.model_validate({"name": "t", "source": str(TICKETS), "task": task})
    plan = plan_batch_model(config, Path("/"), environment)
    assert plan.config.architecture == CLASSIFIER
    assert plan.settings(plan.shards[0]).architecture == CLASSIFIER
    assert plan.settings(plan.shards[0]).arguments["num_labels"] == 6


@pytest.mark.parametrize("named", ["os:system", "serve_app.models.torch_model:ModuleStage", "my.net:Net"])
def test_code_that_a_directory_names_is_not_imported(named: str, tmp_path: Path, environment: Environment) -> None:
    shutil.copytree(TICKETS, tmp_path / "model")
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(content | {"architecture": named}))
    config = ModelConfig(name="t", source=str(tmp_path / "model"), task="classify")
    with pytest.raises(ConfigError, match=f"names architecture='{named}', and code is imported only when the YAML"):
        plan_batch_model(config, tmp_path, environment)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"task": "classify", "parallel": {"tensor": 2}}, f"parallel.tensor=2 cannot cut architecture={CLASSIFIER}"),
        ({"task": "generate"}, f"task=generate cannot run architecture={CLASSIFIER}; set task to classify"),
    ],
)
def test_what_such_a_model_cannot_do_is_refused(
    args: dict[str, object], message: str, environment: Environment
) -> None:
    config = ModelConfig.model_validate({"name": "t", "source": str(TICKETS), **args})
    plan = plan_generator if config.is_generative else plan_batch_model
    with pytest.raises(ConfigError) as refused:
        plan(config, Path("/"), environment)
    assert message in refused.value.message


def test_predicting_needs_a_class(tmp_path: Path, environment: Environment) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = ModelConfig(name="t", source=str(tmp_path), task="predict")
    with pytest.raises(ConfigError, match="task=predict needs architecture: package"):
        plan_batch_model(config, tmp_path, environment)


@pytest.mark.process
def test_a_graph_takes_a_model_by_what_its_directory_names(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        f"""applications:
- {{name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}}
- name: tickets
  route_prefix: null
  import_path: serve_app.app:build_model
  args: {{name: tickets, source: {TICKETS}, task: classify}}
- name: g
  route_prefix: null
  import_path: serve_app.app:build_graph
  args: {{name: g, steps: [{{name: one, model: tickets}}], output: one}}
"""
    )
    checked = check_file(path, can_download=False)
    assert checked.problems == []
