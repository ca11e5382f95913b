"""The directory of batches: what cannot be used is refused with what to do, by loading as by `validate`."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serve_app.config.batches import BatchesConfig, check_batches_directory, open_batches_directory
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import ConfigError
from serve_app.gateway.calls.data_plane import DataPlane
from tests.fakes import ScriptedBackend, save_model_dir


def test_a_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    config = BatchesConfig(directory=str(tmp_path / "batches"))
    assert check_batches_directory(config, Path("/")) == tmp_path / "batches"
    assert not (tmp_path / "batches").exists()
    for _ in range(2):
        assert open_batches_directory(config) == tmp_path / "batches"
    assert (tmp_path / "batches").stat().st_mode & 0o777 == 0o700


def test_a_relative_one_is_that_of_the_serve_files_folder(tmp_path: Path) -> None:
    assert check_batches_directory(BatchesConfig(directory="batches"), tmp_path) == tmp_path / "batches"


@pytest.mark.parametrize(("name", "part"), [("file", "is not a directory"), ("no/batches", "is not there; make it")])
def test_one_that_cannot_be_is_refused(tmp_path: Path, name: str, part: str) -> None:
    (tmp_path / "file").touch()
    config = BatchesConfig(directory=str(tmp_path / name))
    with pytest.raises(ConfigError, match=part) as refused:
        check_batches_directory(config, Path("/"))
    assert refused.value.field == "batches.directory"
    with pytest.raises(ConfigError, match=part):
        open_batches_directory(config)
    backend = ScriptedBackend(save_model_dir(tmp_path / "model"))
    with pytest.raises(ConfigError, match=part):
        DataPlane(backend, GatewayConfig(batches=config))


@pytest.mark.parametrize(
    "given", [{}, {"directory": ""}, {"directory": "a", "concurrency": 0}, {"directory": "a", "keep_days": 0.0}]
)
def test_settings_have_bounds(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BatchesConfig.model_validate(given)
