"""`make image-check` where there is no builder, no base, or a base that cannot be had: one sentence."""

import re
import subprocess
from pathlib import Path

import pytest

from cluster.image_check import ROOT, ImageCheck, main

NO_BASE = """#!/bin/sh
echo STEP 1/9: FROM nowhere
echo 'Error: initializing source docker://nowhere: no such host' >&2
exit 125
"""


@pytest.fixture
def builder(tmp_path: Path) -> str:
    """A program that finds no base, as buildah says it."""
    path = tmp_path / "buildah"
    path.write_text(NO_BASE)
    path.chmod(0o755)
    return str(path)


def test_without_a_builder_it_says_where_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--builder", "/nowhere/buildah", "--base", "python:3.11"]) == 1
    assert capsys.readouterr().err == "/nowhere/buildah is not here, so no image is built: apt-get install buildah\n"


def test_without_a_base_it_says_how_to_give_one(builder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--builder", builder]) == 1
    told = capsys.readouterr().err
    assert told.startswith("no base to build the image from: make image-check BASE=docker.io/library/python:3.11-")
    assert told.count("\n") == 1


def test_a_base_that_cannot_be_had_is_told(builder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--builder", builder, "--base", "nowhere"]) == 1
    told = capsys.readouterr().err
    assert told == "the image is not built: Error: initializing source docker://nowhere: no such host\n"


def test_what_is_built_is_the_dockerfile_from_the_base(builder: str) -> None:
    check = ImageCheck(builder, "oci-archive:/b.tar", "cuda", "https://example.com/simple", ("/opt:/opt/host:ro",))
    text = " ".join(check.build_command)
    assert "--target cuda --file cluster/Dockerfile --ignorefile cluster/Dockerfile.dockerignore" in text
    assert "--build-arg BASE=oci-archive:/b.tar --build-arg TORCH_INDEX=https://example.com/simple" in text
    assert text.endswith("--volume /opt:/opt/host:ro .")
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    assert set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE)) == {"BASE", "TORCH_INDEX"}


def test_make_hands_its_variables_on() -> None:
    words = ["BASE=oci-archive:/b.tar", "TARGET=cuda", "IMAGE_ARGS=--volume /opt:/opt/host:ro"]
    command = ["make", "--no-print-directory", "-n", "image-check", "-o", ".venv/.installed", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    expected = '-m cluster.image_check --base "oci-archive:/b.tar" --target cuda --volume /opt:/opt/host:ro'
    assert done.stdout.strip().endswith(expected)
