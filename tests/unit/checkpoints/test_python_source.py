"""What a module defines, told without running it."""

import sys
from pathlib import Path

import pytest

from serve_app.checkpoints.python_source import find_problem

SOURCE = """
import os.path, json as data
from pathlib import *
raise SystemExit("it was run")
"""


@pytest.mark.parametrize(
    ("module", "name", "problem"),
    [
        ("serve_app.models.text_classifier", "TextClassifier", None),
        ("serve_app.models.text_classifier", "nn", None),  # imported there; loading tells that it is not a class
        ("serve_app.models.text_classifier", "TextClasifier", "text_classifier has no TextClasifier; correct the path"),
        ("serve_app.models.text_clasifier", "TextClassifier", "there is no module serve_app.models.text_clasifier"),
        ("nosuch.package", "Thing", "there is no module nosuch.package to import"),
        ("itertools", "chain", None),  # not Python
        ("grpc_health.v1.health_pb2_grpc", "add_HealthServicer_to_server", None),
        ("grpc_health.v1.health_pb2_grpc", "add_HealthService_to_server", "has no add_HealthService_to_server"),
        ("", "x", "there is no module"),
    ],
)
def test_a_missing_module_or_name_is_told(module: str, name: str, problem: str | None) -> None:
    found = find_problem(module, name)
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert problem in found


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "checked_by_source.py").write_text(SOURCE)
    assert find_problem("checked_by_source", "Anything") is None  # a star: who knows
    (tmp_path / "checked_by_source.py").write_text(SOURCE.replace("*", "Path"))
    assert find_problem("checked_by_source", "Path") is None
    assert find_problem("checked_by_source", "data") is None
    assert find_problem("checked_by_source", "Other") == "checked_by_source has no Other; correct the path"
    (tmp_path / "checked_by_source.py").write_text("class (")
    assert "cannot be read" in str(find_problem("checked_by_source", "Other"))
