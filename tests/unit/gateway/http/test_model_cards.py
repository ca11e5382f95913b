"""What `GET /v1/models` shows of a model."""

import msgspec
import pytest

from serve_app.gateway.http.openai_responses import model_card, model_state
from serve_app.types.models import ModelDescription, ModelSource


def description(max_model_len: int) -> ModelDescription:
    source = ModelSource("/models/m")
    return ModelDescription(
        name="m",
        task="classify",
        source_dir=source.directory,
        max_model_len=max_model_len,
        max_request_tokens=max_model_len,
        vocab_size=10,
        eos_token_ids=[],
        created_s=1,
        source=source,
    )


@pytest.mark.parametrize(("max_model_len", "shown"), [(512, {"max_model_len": 512}), (0, {})])
def test_a_limit_that_a_model_does_not_have_is_left_out(max_model_len: int, shown: dict[str, int]) -> None:
    whole = {"id": "m", "created": 1, **shown, "object": "model", "owned_by": "rayshard"}
    assert msgspec.to_builtins(model_card(description(max_model_len))) == whole
    state = msgspec.to_builtins(model_state(description(max_model_len), is_ready=True))
    assert {name: state[name] for name in whole} == whole
    assert ("max_model_len" in state) == bool(shown)
