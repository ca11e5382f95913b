"""The version of a model: another after what changes its texts, the same after all else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.planning.generator_plan import plan_generator
from serve_app.planning.model_version import read_model_version
from serve_app.types.models import ModelVersion

DEMO = Path(__file__).parents[3] / "examples" / "demo_model" / "model"


def version_of(source: Path = DEMO, **args: Any) -> ModelVersion:
    config = ModelConfig.model_validate({"name": "demo", "source": str(source), **args})
    return read_model_version(plan_generator(config, source.parent, read_environment({})))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The demo model elsewhere."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def change_json(path: Path, **values: object) -> None:
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, **values}))


@pytest.mark.parametrize(
    "args",
    [
        {"max_model_len": 512},
        {"parallel": {"pipeline": 2}},
        {"engine": {"max_num_seqs": 3, "prefix_cache": False}},
        {"generation_config": "off"},
        {"routing": "balanced"},
        {"name": "other"},
    ],
    ids=lambda args: next(iter(args)),
)
def test_settings_that_leave_the_model_as_it_is_do_not_count(args: dict[str, Any]) -> None:
    assert version_of(**args) == version_of()


@pytest.mark.parametrize(
    "args",
    [{"dtype": "float32"}, {"quantization": {"scheme": "int8"}}, {"quantization": {"scheme": "int8_weight_only"}}],
    ids=str,
)
def test_another_form_of_the_weights_is_another_version(args: dict[str, Any]) -> None:
    changed, before = version_of(**args), version_of()
    assert (changed.weights != before.weights, changed.tokens == before.tokens) == (True, True)


def test_the_same_files_elsewhere_are_the_same_version(copied: Path) -> None:
    (copied / "tokenizer_config.json").touch()
    change_json(copied / "tokenizer_config.json", chat_template="{{ messages }}")
    assert version_of(copied) == version_of()


def test_a_name_that_stands_twice_is_taken_as_the_tokenizer_takes_it(copied: Path) -> None:
    path = copied / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"chat_template": "",', 1))
    assert version_of(copied) == version_of()


def test_changed_weights_are_another_version(copied: Path) -> None:
    weights = next(copied.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert version_of(copied).weights != version_of().weights
    assert version_of(copied).tokens == version_of().tokens


def test_another_end_of_answers_is_another_version(copied: Path) -> None:
    change_json(copied / "generation_config.json", eos_token_id=[5, 6])
    assert version_of(copied).weights != version_of().weights


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("special_tokens_map.json", {"sep_token": "="}),
    ],
)
def test_another_tokenizer_is_another_version(copied: Path, name: str, values: dict[str, Any]) -> None:
    change_json(copied / name, **values)
    assert version_of(copied).tokens != version_of().tokens
    assert version_of(copied).weights == version_of().weights
