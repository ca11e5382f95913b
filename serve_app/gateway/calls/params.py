"""Sampling parameters from a request body, checked against the model."""

import secrets
from dataclasses import dataclass

from serve_app.errors import ContextLengthError, RequestError
from serve_app.gateway.bodies.openai import SamplingBody
from serve_app.gateway.calls.models import ServedModel
from serve_app.preprocessing import model_entries
from serve_app.types.generation import SamplingParams


@dataclass(frozen=True, slots=True)
class OutputLimit:
    """How many tokens a request asks for, and by which keys."""

    asked_tokens: int | None
    default_tokens: int | None  # None: what is left of the context
    limit_field: str
    prompt_field: str
    fits_context: bool = False  # what was asked is cut to what is left of the context too


def sampling_params(
    body: SamplingBody,
    model: ServedModel,
    *,
    max_tokens: int,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None,
    grammar: str | None,
) -> SamplingParams:
    """What the Router gets. Raises RequestError."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise RequestError(f"min_tokens={min_tokens} is more than max_tokens={max_tokens}", field="min_tokens")
    stop_token_ids = body.stop_token_ids or []
    check_token_ids(stop_token_ids, model, "stop_token_ids")
    allowed_token_ids = list(dict.fromkeys(body.allowed_token_ids or []))
    check_token_ids(allowed_token_ids, model, "allowed_token_ids")
    logprob_token_ids = list(dict.fromkeys(body.logprob_token_ids or []))
    check_token_ids(logprob_token_ids, model, "logprob_token_ids")
    if logprob_token_ids and num_logprobs is None:
        raise RequestError(
            "logprob_token_ids names the tokens of log-probabilities, and none are asked for; send logprobs too",
            field="logprob_token_ids",
        )
    ends = {*stop_token_ids, *([] if body.ignore_eos else model.description.eos_token_ids)}
    if min_tokens and allowed_token_ids and ends.issuperset(allowed_token_ids):
        raise RequestError(
            f"allowed_token_ids holds only tokens that end the answer, and min_tokens={min_tokens} are to come before; "
            "allow others, or leave min_tokens out",
            field="allowed_token_ids",
        )
    defaults = model.description.sampling
    top_k = _given(body.top_k, defaults.top_k, 0)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        min_tokens=min_tokens,
        temperature=_given(body.temperature, defaults.temperature, 1.0),
        top_k=max(int(top_k), 0),
        top_p=_given(body.top_p, defaults.top_p, 1.0),
        min_p=_given(body.min_p, defaults.min_p, 0.0),
        repetition_penalty=_given(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=_given(body.presence_penalty, None, 0.0),
        frequency_penalty=_given(body.frequency_penalty, None, 0.0),
        logit_bias=_logit_bias(body, model),
        allowed_token_ids=tuple(allowed_token_ids),
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=bool(body.ignore_eos),
        num_logprobs=num_logprobs,
        logprob_token_ids=tuple(logprob_token_ids),
        num_prompt_logprobs=num_prompt_logprobs,
        grammar=grammar,
    )


def fit_output(num_prompt_tokens: int, model: ServedModel, limit: OutputLimit) -> int:
    """max_tokens of a request: what was asked must fit, a default is cut to what is left of the context."""
    context = model.max_context_tokens
    if num_prompt_tokens >= context:
        raise ContextLengthError(
            f"{limit.prompt_field}: {num_prompt_tokens} tokens do not fit this model's context of {context} tokens "
            "with room for an answer; send fewer",
            field=limit.prompt_field,
        )
    room = context - num_prompt_tokens
    asked = limit.asked_tokens
    if asked is None:
        return room if limit.default_tokens is None else min(limit.default_tokens, room)
    if asked > room and not limit.fits_context:
        raise ContextLengthError(
            f"{limit.limit_field}={asked} and a prompt of {num_prompt_tokens} tokens exceed this model's context of "
            f"{context} tokens; send {limit.limit_field} of at most {room}",
            field=limit.limit_field,
        )
    return min(asked, room)


def check_token_ids(token_ids: list[int], model: ServedModel, field: str) -> None:
    """Raises RequestError unless all ids are in the model's vocabulary."""
    model_entries.check_token_ids(token_ids, model.description, model.tokenizer, field)


def _logit_bias(body: SamplingBody, model: ServedModel) -> dict[int, float]:
    given = body.logit_bias or {}
    strange = [key[:32] for key in given if not (key.isascii() and key.isdecimal() and len(key) <= 10)]
    if strange:
        raise RequestError(f"logit_bias: keys {strange[:64]} are not token ids", field="logit_bias")
    bias = {int(key): value for key, value in given.items()}
    vocab_size = model.description.vocab_size
    wrong = [token_id for token_id in bias if token_id >= vocab_size]
    if wrong:
        message = f"logit_bias: token ids {wrong[:64]} are out of vocabulary, which has {vocab_size} of them"
        raise RequestError(message, field="logit_bias")
    return bias


def _given(value: float | None, models_own: float | None, default: float) -> float:
    return float(next(one for one in (value, models_own, default) if one is not None))
