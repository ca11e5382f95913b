"""A model's files, and a backend that answers by rule."""

from pathlib import Path

import pytest

from tests.fakes import ScriptedBackend, save_model_dir


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backend(model_dir: Path) -> ScriptedBackend:
    return ScriptedBackend(model_dir)
