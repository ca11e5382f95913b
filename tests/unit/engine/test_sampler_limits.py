"""Every value that the Gateway lets through draws a token: the ends of each range, alone and with the others."""

from dataclasses import replace
from itertools import product
from typing import Any

import msgspec
import pytest
import torch

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.openai import CompletionBody
from serve_app.types.generation import SamplingParams
from tests.unit.engine.test_sampler import logits_of, sample_one

TINY, SUBNORMAL = 1e-300, 5e-324
ENDS: dict[str, list[float]] = {
    "temperature": [0, SUBNORMAL, TINY, 1e-38, 0.99e-5, 1e-5, 2],
    "top_p": [SUBNORMAL, TINY, 1e-38, 1],
    "min_p": [0, SUBNORMAL, TINY, 1],
    "presence_penalty": [-2, -TINY, TINY, 2],
    "frequency_penalty": [-2, -TINY, TINY, 2],
    "repetition_penalty": [1e-6, 1, 2],
}
LARGEST_FLOAT16 = 65504.0  # logits of a model in float16 are no larger
HISTORY: dict[str, Any] = {"history_token_ids": [3, 3, 5, 7, 7, 7], "num_history_prompt_tokens": 2}
ALONE = [(name, value) for name, values in ENDS.items() for value in values]


@pytest.mark.parametrize(("name", "value"), ALONE)
def test_the_ends_of_a_range_are_taken_and_draw_a_token(name: str, value: float) -> None:
    convert_body({"prompt": "a", name: value}, CompletionBody)
    params = SamplingParams(max_tokens=9, seed=1, num_logprobs=2)
    for base in (params, replace(params, temperature=0.0), replace(params, top_k=3, top_p=0.5, frequency_penalty=2.0)):
        changes: dict[str, Any] = {name: value}
        check_draws(replace(base, **changes))


def test_the_ends_of_all_ranges_together_draw_a_token() -> None:
    for values in product(*(sorted({ends[0], ends[1], ends[-1]}) for ends in ENDS.values())):
        changes: dict[str, Any] = dict(zip(ENDS, values, strict=True))
        check_draws(SamplingParams(max_tokens=9, seed=1, logit_bias={3: 100.0, 5: -100.0, 7: TINY}, **changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", value) for value in (0, SUBNORMAL, TINY, 1e-38, 1e-7, 2.1)]
    + [("temperature", -SUBNORMAL), ("min_p", -SUBNORMAL), ("top_p", -SUBNORMAL), ("presence_penalty", 2.0000001)],
)
def test_what_lies_outside_is_refused_by_name(name: str, value: float) -> None:
    body = msgspec.json.decode(msgspec.json.encode({"prompt": "a", name: value}))
    with pytest.raises(RequestError, match=f"{name}=.* cannot be used: expected float"):
        convert_body(body, CompletionBody)


def check_draws(params: SamplingParams) -> None:
    logits = logits_of(1, scale=10.0)
    logits[0, 3], logits[0, 5], logits[0, 7] = LARGEST_FLOAT16, -LARGEST_FLOAT16, torch.finfo(torch.float16).tiny
    drawn = sample_one(params, logits, **HISTORY)
    assert 0 <= drawn.token_ids[0] < logits.shape[1]
    if drawn.logprobs is not None:
        assert drawn.logprobs[0] is not None
