"""`rayshard deploy`: relative paths are those of the file's folder, whoever reads them."""

import os
import stat
from pathlib import Path

import pytest
import yaml

from serve_app.cli.deploy_command import deploy, with_absolute_paths
from serve_app.cli.main import main
from serve_app.config.gateway import GatewayConfig
from serve_app.planning.serve_file import ServeFile

FILE = """
applications:
- name: gateway
  route_prefix: /
  import_path: serve_app.app:build_gateway
  args: {api_keys_file: keys.yaml}
- name: one
  route_prefix: null
  import_path: serve_app.app:build_model
  args: {name: one, source: models/one, task: embed}
- name: several
  route_prefix: null
  import_path: serve_app.app:build_models
  args: {models: [{name: a, source: ./models/one, task: embed}, {name: hub, source: org/name, task: embed}]}
- {name: bare, route_prefix: null, import_path: 'serve_app.app:build_gateway'}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "models" / "one").mkdir(parents=True)
    (tmp_path / "keys.yaml").touch()
    (tmp_path / "serve.yaml").write_text(FILE)
    return tmp_path / "serve.yaml"


def test_paths_become_absolute_and_hub_ids_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    gateway, one, several, bare = with_absolute_paths(path)["applications"]
    assert gateway["args"]["api_keys_file"] == str(path.parent / "keys.yaml")
    assert one["args"] == {"name": "one", "source": str(path.parent / "models" / "one"), "task": "embed"}
    assert [model["source"] for model in several["args"]["models"]] == [str(path.parent / "models" / "one"), "org/name"]
    assert "args" not in bare


@pytest.mark.process
def test_the_file_is_handed_on(path: Path, tmp_path: Path) -> None:
    stand_in = tmp_path / "serve"
    copy = f"for last; do :; done; cp $last {tmp_path}/given.yaml; echo $@ > {tmp_path}/given; exit 7"
    stand_in.write_text(f"#!/bin/sh\n{copy}\n")
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    serve_file = ServeFile(path, "127.0.0.1", 8000, "gateway", GatewayConfig(), [])
    assert deploy(serve_file, "http://127.0.0.1:1", str(stand_in)) == 7
    assert (tmp_path / "given").read_text().startswith("deploy --address http://127.0.0.1:1 ")
    assert yaml.safe_load((tmp_path / "given.yaml").read_text()) == with_absolute_paths(path)
    assert not os.path.exists((tmp_path / "given").read_text().split()[-1])


def test_a_file_with_mistakes_is_not_handed_on(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", str(path)]) == 1
    assert "applications" in capsys.readouterr().err
