"""A Serve file as pods run it: host lines, paths and keys in every way in which they may be written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.environment import read_environment
from serve_app.errors import ConfigError
from serve_app.kuberay.manifests import plan_manifests
from serve_app.kuberay.options import Entry, KubeRayOptions, parse_place
from tests.published_models import write_published

APPLICATIONS = """
applications:
  - {name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway', args: GATEWAY}
  - name: chat
    route_prefix: null
    import_path: serve_app.app:build_model
    args: {name: chat, source: SOURCE, parallel: {tensor: 2}, max_model_len: 512}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_published("llama-3.1-8B", tmp_path / "models" / "llama")
    return tmp_path


def write(folder: Path, top: str = "", source: str = "models/llama", gateway: str = "{}", more: str = "") -> Path:
    path = folder / "serve.yaml"
    path.write_text(top + APPLICATIONS.replace("SOURCE", source).replace("GATEWAY", gateway) + more)
    return path


def served(path: Path, **given: Any) -> Any:
    places = (parse_place(f"{path.parent / 'models'}=/models"),)
    options = KubeRayOptions(**{"places": places, "models_claim": "models", **given})
    objects = plan_manifests(path, options, read_environment({})).objects
    service: Any = objects[-1]
    return yaml.safe_load(service["spec"]["serveConfigV2"])


@pytest.mark.parametrize(
    "top",
    [
        "http_options: {host: 127.0.0.1, port: 8000}",
        "http_options:\n  host: 127.0.0.1  # this machine only\n  port: 8000",
        'http_options:\n  port: 8000\n  "host": "::1"',
        "http_options: {port: 8000, host: 192.168.1.7}",
        "http_options: {port: 8000}",
        "http_options: &options\n  port: 8000\n  host: localhost\ngrpc_options: {port: 9001}",
    ],
)
def test_serve_listens_on_every_address_however_the_host_is_written(top: str, folder: Path) -> None:
    assert served(write(folder, top))["http_options"] == {"port": 8000, "host": "0.0.0.0"}
    assert served(write(folder))["http_options"]["host"] == "0.0.0.0"


def test_sources_are_where_pods_have_them(folder: Path) -> None:
    for source in ("models/llama", "./models/../models/llama", str(folder / "models" / "llama"), "/models/llama"):
        assert served(write(folder, source=source))["applications"][1]["args"]["source"] == "/models/llama"


def test_a_link_in_a_folder_that_pods_have_is_there_by_its_own_name(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "snapshot"
    (folder / "models" / "llama").rename(elsewhere)
    (folder / "models" / "linked").symlink_to(elsewhere)
    for source in ("models/linked", "models/../models/linked", str(elsewhere)):
        places = (parse_place(f"{folder / 'models'}=/models"), parse_place(f"{elsewhere}=/models/linked"))
        assert served(write(folder, source=source), places=places)["applications"][1]["args"]["source"] == (
            "/models/linked"
        )


def test_what_is_not_a_path_or_an_address_stays_as_it_is(folder: Path) -> None:
    path = write(folder, "logging_config: {log_level: INFO}\n", gateway="{max_request_bytes: 1MiB}")
    given, carried = yaml.safe_load(path.read_text()), served(path)
    chat = carried["applications"][1]["args"]
    assert chat.pop("device") == {"cpu_threads": 1, "cpus_per_shard": 1.0}
    assert chat.pop("source") == "/models/llama"
    assert given["applications"][1]["args"].pop("source") == "models/llama"
    assert carried.pop("http_options") == {"host": "0.0.0.0"}
    assert carried == given


def test_a_part_that_the_file_names_twice_is_changed_in_each_place(folder: Path) -> None:
    second = (
        "  - {name: other, route_prefix: null, import_path: 'serve_app.app:build_model', "
        "args: {name: other, source: models/llama, max_model_len: 512, device: &small {cpu_threads: 3}}}\n"
        "  - {name: third, route_prefix: null, import_path: 'serve_app.app:build_model', "
        "args: {name: third, source: models/llama, max_model_len: 512, device: *small}}\n"
    )
    carried = served(write(folder, more=second))
    devices = [application["args"].get("device") for application in carried["applications"][1:]]
    assert devices == [{"cpu_threads": count, "cpus_per_shard": float(count)} for count in (1, 3, 3)]


def test_keys_come_from_a_secret(folder: Path) -> None:
    path = write(folder, gateway="{api_keys_file: keys.txt}")
    with pytest.raises(ConfigError) as refused:
        served(path)
    assert str(refused.value).startswith("applications[gateway].args.api_keys_file: keys.txt is a file of this machine")
    assert "--keys-secret rayshard-keys" in str(refused.value)
    for gateway in ("{api_keys_file: keys.txt}", "{}"):
        keyed = served(write(folder, gateway=gateway), keys_secret="keys")["applications"][0]["args"]
        assert keyed == {"api_keys_file": "/etc/rayshard/keys/keys.txt"}


def test_batches_are_not_kept_on_a_pods_own_disk(folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        served(write(folder, gateway="{batches: {directory: batches}}"))
    assert str(refused.value).startswith("applications[gateway].args.batches: a pod's disk is its own")


@pytest.mark.parametrize(
    ("top", "where", "told"),
    [
        ("http_options: {ssl_keyfile: key.pem, ssl_certfile: c.pem}", "http_options.ssl_keyfile", "TLS ends in front"),
        ("proxy_location: HeadOnly", "proxy_location", "leaves no pod that answers"),
        ("http_options: {port: 8080}", "http_options.port", "8080 is the port of Ray's metrics in a pod"),
        ("logging_config: {logs_dir: /var/log}", "logging_config.logs_dir", "use a folder below /tmp"),
    ],
)
def test_what_a_pod_cannot_have_is_told(top: str, where: str, told: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        served(write(folder, top))
    (line, *_) = str(refused.value).splitlines()
    assert line.startswith(f"{where}: ")
    assert told in line


def test_every_mistake_is_told_at_once(folder: Path) -> None:
    path = write(folder, "proxy_location: Disabled", source="elsewhere/llama", gateway="{api_keys_file: keys.txt}")
    (folder / "elsewhere" / "llama").mkdir(parents=True)
    with pytest.raises(ConfigError) as refused:
        served(path)
    places = [line.partition(":")[0] for line in str(refused.value).splitlines()]
    assert places == ["proxy_location", "applications[gateway].args.api_keys_file", "applications[chat].args"]
    assert "source=elsewhere/llama is a path of this machine, which no pod has" in str(refused.value)


@pytest.mark.parametrize("runtime_env", ["{working_dir: .}", "{py_modules: [./mine]}"])
def test_folders_of_a_runtime_env_are_not_in_a_pod(runtime_env: str, folder: Path) -> None:
    path = write(folder)
    path.write_text(path.read_text().replace("  - name: chat", f"  - name: chat\n    runtime_env: {runtime_env}"))
    with pytest.raises(ConfigError, match=r"applications\[chat\]\.runtime_env\..*build it into the image"):
        served(path)


def test_clients_may_ask_for_the_host_of_the_way_in(folder: Path) -> None:
    entry = Entry("ingress", "nginx", "models.example.com", "tls")
    assert served(write(folder, gateway="{allowed_hosts: ['*.example.com']}"), entry=entry)
    with pytest.raises(ConfigError, match=r"allowed_hosts: other\.org leave out --host models\.example\.com"):
        served(write(folder, gateway="{allowed_hosts: [other.org]}"), entry=entry)


def test_modules_that_the_image_must_have_are_named(folder: Path) -> None:
    extra = "\n  - {name: mine, route_prefix: /mine, import_path: 'my_package.app:build'}\n"
    options = KubeRayOptions(places=(parse_place(f"{folder / 'models'}=/app"),))
    text = plan_manifests(write(folder, more=extra), options, read_environment({})).text
    assert "# The image must have my_package.app: serve.yaml names what is in it." in text.splitlines()
