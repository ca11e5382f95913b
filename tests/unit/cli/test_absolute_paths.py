"""Relative paths of a Serve file are those of its folder, whoever reads them."""

from pathlib import Path

import pytest

from serve_app.cli.absolute_paths import with_absolute_paths, with_http_host

FILE = """
applications:
- name: gateway
  route_prefix: /
  import_path: serve_app.app:build_gateway
  args: {api_keys_file: keys.yaml, batches: {directory: batches, keep_days: 2}}
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
    assert gateway["args"]["batches"] == {"directory": str(tmp_path / "batches"), "keep_days": 2}
    assert one["args"] == {"name": "one", "source": str(tmp_path / "models" / "one"), "task": "embed"}
    assert [model["source"] for model in several["args"]["models"]] == [str(tmp_path / "models" / "one"), "org/name"]
    assert "args" not in bare


@pytest.mark.parametrize("top", ["", "http_options: {port: 8000}", "http_options:\n  host: '::1'\n  port: 8000"])
def test_the_address_to_listen_at_replaces_the_files(top: str, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(top + FILE)
    content = with_http_host(tmp_path / "serve.yaml", "0.0.0.0")
    assert content["http_options"].pop("host") == "0.0.0.0"
    assert content["http_options"] == ({"port": 8000} if top else {})
    names = [application["name"] for application in content["applications"]]
    assert names == ["gateway", "one", "several", "bare"]
