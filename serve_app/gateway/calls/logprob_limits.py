"""How many log-probabilities a request may ask for."""

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import MAX_LOGPROBS
from serve_app.gateway.calls.models import ServedModel
from serve_app.types.generation import SamplingParams

WHOLE_VOCABULARY = -1
MAX_NUMBERS = 262_144  # of one prompt and its answers, where more than MAX_LOGPROBS are asked for of a token


def num_of(given: int | None, model: ServedModel) -> int | None:
    """How many are wanted of each token."""
    return model.description.vocab_size if given == WHOLE_VOCABULARY else given


def check_logprobs(params: SamplingParams, num_prompt_tokens: int, num_choices: int) -> None:
    """Raises RequestError where whole vocabularies of many tokens are asked for."""
    asked = {
        "logprobs": (params.num_logprobs or 0, params.max_tokens * num_choices),
        "prompt_logprobs": (params.num_prompt_logprobs or 0, num_prompt_tokens),
    }
    for field, (num_each, num_tokens) in asked.items():
        if num_each > MAX_LOGPROBS and num_each * num_tokens > MAX_NUMBERS:
            raise RequestError(
                f"{field}=-1: {num_each} numbers for each of {num_tokens} tokens are more than {MAX_NUMBERS}; ask for "
                f"fewer tokens, or for at most {MAX_LOGPROBS} numbers of each",
                field=field,
            )
