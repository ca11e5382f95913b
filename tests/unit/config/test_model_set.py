"""Several small models in one shard process: what they share, they cannot set."""

import pytest
from pydantic import ValidationError

from serve_app.config.autoscaling import AutoscalingConfig
from serve_app.config.model_set import ModelSetConfig

EMBEDDER = {"name": "a", "source": "b", "task": "embed"}


def test_models_that_share_a_process_share_what_stands_by() -> None:
    shared = ModelSetConfig.model_validate({"models": [EMBEDDER], "standby_shards": 1})
    assert [model.standby_shards for model in shared.shared_models] == [1]
    with pytest.raises(ValidationError, match="a sets standby_shards, which all models share"):
        ModelSetConfig.model_validate({"models": [{**EMBEDDER, "standby_shards": 1}]})


def test_models_that_share_a_process_are_scaled_together() -> None:
    shared = ModelSetConfig.model_validate({"models": [EMBEDDER], "autoscaling": {"max_replicas": 2}})
    assert [model.autoscaling for model in shared.shared_models] == [AutoscalingConfig(max_replicas=2)]
    with pytest.raises(ValidationError, match="a sets autoscaling, which all models share"):
        ModelSetConfig.model_validate({"models": [{**EMBEDDER, "autoscaling": {"max_replicas": 2}}]})
