"""`make image-check`: builds the image from a base that is given, runs its own command in it, and asks for an answer.

With buildah's chroot isolation, which needs neither an engine nor a network of its own; as root, or in a user
namespace (`buildah unshare make image-check ...`).
"""

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]
TAG = "localhost/rayshard:check"
QUESTION, ANSWER = "date jan 8 2038", "2038-01-08"
_START_S = 600.0
_STOP_S = 90.0
_COMPILED = '#include <Python.h>\nextern "C" int answer() { return PY_MAJOR_VERSION; }\n'
_COMPILER_CHECK = f"""
import ctypes, os, subprocess, sysconfig, tempfile
folder = tempfile.mkdtemp()
source, library = os.path.join(folder, "a.cpp"), os.path.join(folder, "a.so")
open(source, "w").write({_COMPILED!r})
subprocess.run(["g++", "-shared", "-fPIC", "-I", sysconfig.get_path("include"), source, "-o", library], check=True)
print(os.getuid(), ctypes.CDLL(library).answer())
"""


class CheckError(Exception):
    """Why there is no image that answers."""


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What is built, from what, by which program."""

    builder: str
    base: str
    target: str
    torch_index: str | None = None
    volumes: tuple[str, ...] = ()  # HERE:IN_IMAGE:ro, while it is built

    @property
    def build_command(self) -> list[str]:
        """The builder's command, in the repository's root."""
        index = [] if self.torch_index is None else ["--build-arg", f"TORCH_INDEX={self.torch_index}"]
        return [
            *(self.builder, "build", "--isolation", "chroot", "--layers", "--tag", TAG, "--target", self.target),
            *("--file", "cluster/Dockerfile", "--ignorefile", "cluster/Dockerfile.dockerignore"),
            *("--build-arg", f"BASE={self.base}", *index),
            *(word for volume in self.volumes for word in ("--volume", volume)),
            ".",
        ]


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    try:
        check = _parsed(arguments)
        _run(check.build_command, "the image is not built")
        with _container(check.builder) as container:
            _check_compiler(check.builder, container)
            _ask(check.builder, container)
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: Sequence[str]) -> ImageCheck:
    parser = argparse.ArgumentParser(prog="make image-check", description=__doc__)
    parser.add_argument("--builder", default="buildah", help="buildah, by its name or path")
    parser.add_argument("--base", default="", help="an image with python3, or oci-archive:FILE")
    parser.add_argument("--target", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--torch-index", help="an index with the builds of torch that are wanted")
    parser.add_argument("--volume", action="append", default=[], help="HERE:IN_IMAGE:ro, while the image is built")
    given = parser.parse_args(arguments)
    builder = shutil.which(given.builder)
    if builder is None:
        raise CheckError(f"{given.builder} is not here, so no image is built: apt-get install buildah")
    if not given.base:
        raise CheckError(
            "no base to build the image from: make image-check BASE=docker.io/library/python:3.11-slim-bookworm, or "
            "BASE=oci-archive:FILE for one that is a file"
        )
    return ImageCheck(builder, given.base, given.target, given.torch_index, tuple(given.volume))


def _run(command: list[str], otherwise: str) -> str:
    """What a command prints, which is shown as it comes. Raises CheckError."""
    print("+", " ".join(command), flush=True)
    printed = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            printed.append(line)
    if process.returncode != 0:
        last = next((line.strip() for line in reversed(printed) if line.strip()), f"status {process.returncode}")
        raise CheckError(f"{otherwise}: {last}")
    return "".join(printed)


@contextmanager
def _container(builder: str) -> Iterator[str]:
    """A container of the image, which goes away."""
    name = _run([builder, "from", "--pull-never", TAG], "the image is not there").strip().splitlines()[-1]
    try:
        yield name
    finally:
        subprocess.run([builder, "rm", name], capture_output=True, check=False)


def _check_compiler(builder: str, container: str) -> None:
    """Kernels are compiled where the image runs, by its own user."""
    command = [builder, "run", "--isolation", "chroot", container, "--", "python", "-c", _COMPILER_CHECK]
    printed = _run(command, "the image cannot compile against Python.h, which inductor and Triton do").split()
    if printed[-2:] != ["1000", "3"]:
        raise CheckError(f"the image runs as {' '.join(printed[-2:])}, not as user 1000 with Python 3")


def _ask(builder: str, container: str) -> None:
    """Run the image's command, on loopback and a free port: chroot isolation shares this machine's network."""
    inspect = [builder, "inspect", "--type", "container", container]
    config = json.loads(subprocess.run(inspect, capture_output=True, check=True).stdout)["OCIv1"]["config"]
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serve.yaml"
        content = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        content["http_options"]["port"] = port
        file.write_text(yaml.safe_dump(content))
        Path(folder).chmod(0o755)
        told = [*config["Entrypoint"], *config["Cmd"]]
        told = [{"serve_config.yaml": "check.yaml", "0.0.0.0": "127.0.0.1"}.get(word, word) for word in told]
        options = ["--isolation", "chroot", "--volume", f"{file}:/app/check.yaml:ro"]
        command = [builder, "run", *options, container, "--", *told]
        print("+", " ".join(command), flush=True)
        with subprocess.Popen(command, cwd=ROOT) as process:
            try:
                _wait_until_healthy(process, port)
                text = _answer(port)
            finally:
                status = _stop(process)
    if ANSWER not in text:
        raise CheckError(f"the image answers {text!r} to {QUESTION!r}, not {ANSWER}")
    if status != 0:
        raise CheckError(f"the image's command ended with status {status} after SIGTERM, not 0")
    print(f"the image answers: {QUESTION} -> {text}")


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise CheckError(f"the image's command ended with status {process.returncode} before it was healthy")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(1)
    raise CheckError(f"the image's command was not healthy within {_START_S:g} s")


def _answer(port: int) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 32}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text: str = json.load(answer)["choices"][0]["message"]["content"]
            return text
    except urllib.error.HTTPError as error:
        raise CheckError(f"the image answers {error.code}: {error.read().decode(errors='replace')[:300]}") from error


def _stop(process: "subprocess.Popen[bytes]") -> int:
    """SIGTERM to the image's command, as an engine sends it; its exit status. What is left after that is killed."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in started:
        with contextlib.suppress(psutil.Error):
            if one.cmdline()[1:2] == ["/opt/venv/bin/rayshard"] and "python" in one.cmdline()[0]:
                one.terminate()
    _gone, alive = psutil.wait_procs(started, _STOP_S)
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_STOP_S)
    process.kill()
    return process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
