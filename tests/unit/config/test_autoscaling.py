"""A model's `autoscaling` section: what it takes, and what it refuses."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config.autoscaling import AutoscalingConfig
from serve_app.config.model import ModelConfig
from serve_app.config.model_set import ModelSetConfig

EMBEDDER: dict[str, Any] = {"name": "a", "source": "b", "task": "embed"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "max_replicas"),
        ({"max_replicas": 0}, "max_replicas"),
        ({"max_replicas": 2, "min_replicas": -1}, "min_replicas"),
        ({"max_replicas": 2, "min_replicas": 3}, "min_replicas=3 is above max_replicas=2; raise max_replicas"),
        ({"max_replicas": 2, "kv_usage": 1.5}, "kv_usage"),
        ({"max_replicas": 2, "queue_share": 0.0}, "queue_share"),
        ({"max_replicas": 2, "target_ttft_s": 0.0}, "target_ttft_s"),
        ({"max_replicas": 2, "downscale_step": 0.0}, "downscale_step"),
        (
            {"max_replicas": 2, "idle_delay_s": 60.0},
            "idle_delay_s=60 has no effect with min_replicas=1; remove it, or set min_replicas: 0",
        ),
        ({"max_replicas": 2, "target_ongoing_requests": 2}, "target_ongoing_requests"),
    ],
)
def test_what_cannot_take_effect_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        AutoscalingConfig.model_validate(values)


def test_a_model_that_may_sleep_starts_once_to_show_that_it_can() -> None:
    assert AutoscalingConfig(min_replicas=0, max_replicas=4).num_first_replicas == 1
    assert AutoscalingConfig(min_replicas=3, max_replicas=4).num_first_replicas == 3


def test_a_kv_target_is_for_models_that_keep_a_kv_cache() -> None:
    section = {"max_replicas": 2, "kv_usage": 0.5}
    assert ModelConfig.model_validate({**EMBEDDER, "task": "generate", "autoscaling": section}).autoscaling is not None
    told = "autoscaling.kv_usage=0.5 has no effect on task=embed: no KV cache is kept; remove it"
    with pytest.raises(ValidationError, match=re.escape(told)):
        ModelConfig.model_validate({**EMBEDDER, "autoscaling": section})
    told = "autoscaling.kv_usage=0.5 has no effect on models that share a process"
    with pytest.raises(ValidationError, match=re.escape(told)):
        ModelSetConfig.model_validate({"models": [EMBEDDER], "autoscaling": section})
