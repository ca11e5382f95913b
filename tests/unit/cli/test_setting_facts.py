"""What is known of a setting: each has a text, and its kind, unit and bounds are those that pydantic holds it to."""

from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.cli.config_markdown import all_groups
from serve_app.cli.refusal_texts import refusals_of
from serve_app.cli.setting_facts import Setting, settings_of
from serve_app.config.base import ConfigModel
from serve_app.config.engine import EngineConfig
from serve_app.config.gateway import GatewayConfig
from serve_app.config.model import ModelConfig

SETTINGS = [(model, setting) for _title, model in all_groups() for setting in settings_of(model)]


def fact(model: type[ConfigModel], name: str) -> Setting:
    return next(one for one in settings_of(model) if one.name == name)


@pytest.mark.parametrize(("model", "setting"), SETTINGS, ids=lambda one: getattr(one, "name", None))
def test_every_setting_is_described(model: type[ConfigModel], setting: Setting) -> None:
    assert setting.meaning.endswith("."), f"write what {model.__name__}.{setting.name} is, below it, as a sentence"
    assert len(setting.first_sentence) < 115
    is_number = setting.kind.startswith(("integer", "number", "size"))
    assert setting.unit is not None or not is_number, f"say the unit of {setting.name} in brackets, [none] without one"


@pytest.mark.parametrize(
    ("model", "name", "kind", "unit", "bounds"),
    [
        (EngineConfig, "max_num_seqs", "integer", "sequences", "from 1 to 65,536"),
        (EngineConfig, "gpu_memory_utilization", "number", "share", "above 0 to 1"),
        (EngineConfig, "kv_cache_bytes", "size or null", "bytes", "from 1"),
        (EngineConfig, "cuda_graphs", "`auto`, `off`", None, ""),
        (EngineConfig, "prefix_cache", "true or false", None, ""),
        (GatewayConfig, "queue_timeout_s", "number or null", "seconds", "above 0"),
        (GatewayConfig, "allowed_hosts", "list of text or null", None, "not empty"),
        (ModelConfig, "batch_dim", "integer or null", "index", "from 0 to 7"),
        (ModelConfig, "standby_shards", "integer", "processes", "from 0 to 64"),
        (ModelConfig, "inputs", "group by name or null", None, ""),
    ],
)
def test_kind_unit_and_bounds_follow_from_the_field(
    model: type[ConfigModel], name: str, kind: str, unit: str | None, bounds: str
) -> None:
    found = fact(model, name)
    assert (found.kind, found.unit, found.bounds) == (kind, unit, bounds)


def test_groups_below_are_found() -> None:
    assert fact(ModelConfig, "engine").group is EngineConfig
    assert [fact(ModelConfig, name).is_many for name in ("engine", "weights", "inputs")] == [False, True, True]
    titles = [title for title, _model in all_groups()]
    assert "`engine`, of a model" in titles
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (EngineConfig, {"max_num_seqs": 64, "max_num_batched_tokens": 8}),
        (ModelConfig, {"name": "a", "source": "b", "architecture": "no path"}),
        (ModelConfig, {"name": "a", "source": "b", "task": "embed", "generation_config": "off"}),
        (ModelConfig, {"name": "a", "source": "b", "standby_shards": 3}),
        (GatewayConfig, {"cors_allowed_origins": ["example.com"]}),
    ],
)
def test_what_a_check_says_is_among_the_texts(model: type[ConfigModel], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    told = str(caught.value.errors()[0]["ctx"]["error"])
    templates = refusals_of(model)
    assert any(all(part in told for part in template.split("…")) for template in templates), (told, templates)
