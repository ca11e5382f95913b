"""What the builder of an application refuses, so that Serve stops no older copy for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.build_check import refuse_unloadable

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "demo_model" / "model"


def check(source: Path | str, base_dir: Path = ROOT, *, is_only_node: bool = True, **args: Any) -> None:
    config = ModelConfig.model_validate({"name": "demo", "source": str(source), **args})
    refuse_unloadable(config, base_dir, read_environment({}), is_only_node=is_only_node)


def test_what_can_be_loaded_passes_and_so_does_what_is_elsewhere(tmp_path: Path) -> None:
    check("examples/demo_model/model", parallel={"pipeline": 2})
    check("org/model", tmp_path)
    check(DEMO, architecture="package.module:Class", task="predict")
    check("/no/such/model", is_only_node=False)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"source": "/no/such/model"}, "source=/no/such/model is not a directory: / exists, but has no 'no'"),
        ({"source": DEMO, "parallel": {"pipeline": 99}}, "pipeline=99"),
        ({"source": DEMO, "max_model_len": 10**9}, "max_model_len"),
        ({"source": DEMO, "task": "embed", "parallel": {"tensor": 7}}, "tensor=7"),
    ],
)
def test_what_cannot_be_loaded_is_refused(args: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(**args)
    assert expected in error.value.message


def test_files_that_are_damaged_are_refused(tmp_path: Path) -> None:
    source = shutil.copytree(DEMO, tmp_path / "model")
    (source / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json there"):
        check(source)
    (source / "config.json").write_text(json.dumps({"model_type": "nosuch"}))
    with pytest.raises(ConfigError, match="nosuch"):
        check(source)
