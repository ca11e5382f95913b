"""All mistakes of a Serve file in one go: those that only a class, a port or the machine tells too."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from serve_app.cli.check_file import check_file
from serve_app.errors import ConfigError
from serve_app.planning.machine import Machine
from serve_app.tracing import start

TICKETS = Path(__file__).parents[3] / "examples" / "text_classifier" / "model"
GATEWAY = "- {name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}"
CLASSIFIER = "serve_app.models.text_classifier:TextClassifier"
HEALTH = "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server"


def write(directory: Path, head: str, *models: str) -> Path:
    path = directory / "serve.yaml"
    applications = [
        f"- {{name: m{index}, route_prefix: null, import_path: 'serve_app.app:build_model', "
        f"args: {{name: m{index}, source: {TICKETS}, {args}}}}}"
        for index, args in enumerate(models)
    ]
    path.write_text("\n".join([head, "applications:", GATEWAY, *applications]))
    return path


def messages(path: Path, machine: Machine | None = None) -> list[str]:
    return [str(problem) for problem in check_file(path, can_download=False, machine=machine).problems]


def test_a_collector_without_what_sends_spans_to_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(start, "distribution", missing)
    path = write(tmp_path, "")
    messages(path)  # without a collector nothing is asked for
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    with pytest.raises(ConfigError, match="otlp-proto-http, which sends spans there, is not installed"):
        messages(path)


@pytest.mark.process
def test_what_only_a_class_can_tell_is_told_with_all_else(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "",
        "task: classify, parallel: {pipeline: 9}",
        "task: classify, architecture: 'serve_app.models.text_classifier:TextClasifier'",
        "task: classify, architecture: 'tests.user_modules:MaskedTower'",
        f"task: classify, architecture: '{CLASSIFIER}', arguments: {{hiden: 3}}",
        f"task: classify, architecture: '{CLASSIFIER}', arguments: {{hidden_size: 32}}",
        "task: classify, architecture: 'serve_app.models.text_classifier:TensorSpec'",
        "task: classify, device: {type: cuda}",
        "task: classify, parallel: {pipeline: 3}",
    )
    found = dict(message.split(": ", 1) for message in messages(path, Machine(99, 0)))
    assert {where.partition(".")[0] for where in found} == {f"applications[m{index}]" for index in range(7)}
    args = [found.get(f"applications[m{index}].args", "") for index in range(7)]
    assert args[0].startswith(f"parallel.pipeline=9 is longer than the 3 parts of architecture={CLASSIFIER}; use at mo")
    assert "text_classifier has no TextClasifier; correct the path" in args[1]
    assert args[2]
    assert "cannot be built with arguments=" in args[3]
    assert "hiden" in args[3]
    assert "has shape [128, 64] in the module, but [256, 64]" in args[4]
    assert "has no nn.Module of the name TensorSpec; correct the path" in args[5]
    assert "type=cuda, and this machine has no GPU" in found["applications[m6].args.device"]


@pytest.mark.process
def test_float8_is_refused_where_the_type_of_the_gpu_is_known(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "",
        "task: classify, quantization: {scheme: fp8}, device: {type: cuda}",
        "task: classify, quantization: {scheme: fp8}, device: {type: cuda, accelerator_type: T4}",
        "task: classify, quantization: {scheme: int8}, device: {type: cuda}",
    )
    told = "needs a GPU of compute capability 8.9 or later (L4, L40S, H100), and this GPU has"
    found = [message for message in messages(path, Machine(99, 8, "A100")) if told in message]
    assert [message.partition(".")[0] for message in found] == ["applications[m0]", "applications[m1]"]
    assert "has 8.0; use int8" in found[0]
    assert "has 7.5; use int8" in found[1]
    assert len([message for message in messages(path) if told in message]) == 1, "named, though no machine is known"
    assert len([message for message in messages(path, Machine(99, 8, "H100")) if told in message]) == 1


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (
            f"http_options: {{port: 9000}}\ngrpc_options: {{grpc_servicer_functions: [{HEALTH}]}}",
            "grpc_options.port: 9000 is http_options.port too; set another port",
        ),
        ("http_options: {port: 8265}", "http_options.port: 8265 is the port of Ray's dashboard; set another port"),
        (
            f"grpc_options: {{port: 9001, grpc_servicer_functions: [{HEALTH}s]}}",
            f"grpc_options.grpc_servicer_functions: '{HEALTH}s' cannot be called: grpc_health.v1.health_pb2_grpc",
        ),
        (
            "grpc_options: {grpc_servicer_functions: [nosuch]}",
            "grpc_options.grpc_servicer_functions: 'nosuch' cannot be called: write package.module.function",
        ),
        (
            "grpc_options: {grpc_servicer_functions: nosuch}",
            "grpc_options.grpc_servicer_functions: 'nosuch' is not a list",
        ),
    ],
)
def test_servers_and_their_functions_are_checked(tmp_path: Path, head: str, told: str) -> None:
    (message,) = messages(write(tmp_path, head, "task: classify, pooling: mean"))[:1]
    assert message.startswith(told)


def test_a_directory_of_batches_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "", "task: classify, pooling: mean")
    for directory, told in (("batches", 0), ("no/batches", 1)):
        gateway = GATEWAY.replace("'}", f"', args: {{batches: {{directory: {directory}}}}}}}")
        found = messages(with_gateway(path, gateway))
        assert [one for one in found if one.startswith("batches.directory: ")] == [
            f"batches.directory: {tmp_path}/no is not there; make it, or name another directory for batches"
        ] * told


def with_gateway(path: Path, gateway: str) -> Path:
    changed = path.with_name("changed.yaml")
    changed.write_text(path.read_text().replace(GATEWAY, gateway))
    return changed


def test_one_port_is_enough_where_nothing_listens_for_grpc(tmp_path: Path) -> None:
    told = messages(write(tmp_path, "http_options: {port: 9000}", "task: classify, pooling: mean"))
    assert not any("port" in message for message in told)
