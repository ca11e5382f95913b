"""The command `rayshard kuberay`: its exit status, and what goes where."""

import shutil
from pathlib import Path

import pytest
import yaml

from examples.prepare_everything import prepare
from serve_app.cli.main import main
from tests.kuberay_schema import operator_mistakes, schema_mistakes

ROOT = Path(__file__).parents[3]
FILE = str(ROOT / "serve_config.yaml")
EXAMPLES = f"{ROOT / 'examples'}=/app/examples"


def test_the_manifests_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--in-pod", EXAMPLES, "--name", "chat", "--namespace", "models", "--image", "example.com/a:1"]
    options += ["--ingress", "nginx", "--host", "models.example.com", "--monitoring", "--drain-s", "300"]
    assert main(["kuberay", FILE, *options]) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    kinds = ["NetworkPolicy", "PodDisruptionBudget", "PodDisruptionBudget", "PodMonitor", "Ingress", "RayService"]
    assert [one["kind"] for one in objects] == kinds
    assert {one["metadata"]["namespace"] for one in objects} == {"models"}
    service = objects[-1]
    assert service["metadata"]["name"] == "chat"
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["containers"][0]["image"] == "example.com/a:1"
    assert worker["terminationGracePeriodSeconds"] == 360
    (tls,) = objects[4]["spec"]["tls"]
    assert tls == {"hosts": ["models.example.com"], "secretName": "chat-tls"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "source=examples/demo_model/model is a path of this machine, which no pod has"),
        (["--in-pod", EXAMPLES, "--host", "a.b"], "--host without a way in; give --ingress CLASS or --gateway CLASS"),
        (["--in-pod", EXAMPLES, "--gateway", "cilium"], "--gateway cilium without a host; give --host NAME"),
        (["--in-pod", "examples"], "--in-pod examples: write HERE=IN_POD"),
        (["--in-pod", EXAMPLES, "--redis", "redis"], "--redis redis is not an address"),
    ],
)
def test_mistakes_are_told_and_nothing_is_printed(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kuberay", FILE, *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err


def test_mistakes_of_the_file_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(Path(FILE).read_text().replace("max_model_len", "max_model_length"))
    assert main(["kuberay", str(path)]) == 1
    assert "max_model_length: unknown setting; did you mean max_model_len?" in capsys.readouterr().err


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """examples/everything.yaml beside the models that it names, as examples/prepare_everything.py makes them."""
    folder = tmp_path / "examples"
    folder.mkdir()
    for name in ("demo_model", "text_classifier"):
        (folder / name).symlink_to(ROOT / "examples" / name)
    prepare(tmp_path / "build" / "examples")
    return Path(shutil.copy(ROOT / "examples" / "everything.yaml", folder))


def test_the_example_of_each_kind_says_where_pods_lack_a_model_and_is_taken_where_they_have_them(
    everything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kuberay", str(everything)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == [
        f"applications[{name}].args" for name in ("demo", "minilm", "mood", "tickets")
    ]
    for line in told:
        assert "is a path of this machine, which no pod has; say where pods have it, such as --in-pod " in line
    assert f"--in-pod {everything.parents[1] / 'build' / 'examples'}=/models --models-claim NAME" in told[1]

    places = [f"{everything.parent}=/app/examples", f"{everything.parents[1] / 'build' / 'examples'}=/models"]
    options = [word for place in places for word in ("--in-pod", place)]
    assert main(["kuberay", str(everything), *options, "--models-claim", "models"]) == 0
    service = list(yaml.safe_load_all(capsys.readouterr().out))[-1]
    assert schema_mistakes(service) == []
    assert operator_mistakes(service) == []
    carried = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    given = yaml.safe_load(everything.read_text())["applications"]
    assert [one["name"] for one in carried] == [one["name"] for one in given]
    assert [one["args"].get("source") for one in carried] == [
        None,
        "/app/examples/demo_model/model",
        "/models/minilm",
        "/models/bert",
        "/app/examples/text_classifier/model",
        None,
    ]
