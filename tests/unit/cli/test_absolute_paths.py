"""Relative paths of a Serve file are those of its folder, whoever reads them."""

from pathlib import Path

import pytest

from serve_app.cli.absolute_paths import with_absolute_paths

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


def test_paths_become_absolute_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "one").mkdir(parents=True)
    (tmp_path / "keys.yaml").touch()
    (tmp_path / "serve.yaml").write_text(FILE)
    monkeypatch.chdir("/")
    gateway, one, several, bare = with_absolute_paths(tmp_path / "serve.yaml")["applications"]
    assert gateway["args"]["api_keys_file"] == str(tmp_path / "keys.yaml")
    assert one["args"] == {"name": "one", "source": str(tmp_path / "models" / "one"), "task": "embed"}
    assert [model["source"] for model in several["args"]["models"]] == [str(tmp_path / "models" / "one"), "org/name"]
    assert "args" not in bare
