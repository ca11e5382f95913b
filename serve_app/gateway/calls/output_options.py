"""How a request wants its answer shown."""

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import SamplingBody
from serve_app.gateway.calls.choice import OutputOptions
from serve_app.gateway.calls.logprob_limits import num_of
from serve_app.gateway.calls.models import ServedModel
from serve_app.preprocessing.stop_strings import StopStrings


def output_options(
    body: SamplingBody,
    model: ServedModel,
    *,
    num_logprobs: int | None,
    has_echo: bool = False,
    is_prompt_only: bool = False,
) -> OutputOptions:
    """How the answer to a body is wanted. Raises RequestError for what does not go together."""
    is_stream = bool(body.stream)
    if body.stream_options is not None and not is_stream:
        raise RequestError("stream_options needs stream=true", field="stream_options")
    if body.prompt_logprobs is not None and is_stream:
        raise RequestError("prompt_logprobs does not work with stream=true; send stream=false", field="prompt_logprobs")
    if body.restore_redactions:
        _check_restoring(body, model, num_logprobs)
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    has_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return OutputOptions(
        stops=StopStrings(
            stops,
            include_in_output=bool(body.include_stop_str_in_output),
            special_tokens=model.tokenizer.table.special_tokens.values(),
        ),
        num_choices=body.n or 1,
        skip_special_tokens=body.skip_special_tokens is not False,
        is_stream=is_stream,
        has_usage=has_usage,
        has_continuous_usage=has_usage and bool(body.stream_options and body.stream_options.continuous_usage_stats),
        num_logprobs=num_logprobs,
        compares_tokens=bool(body.logprob_token_ids),
        num_prompt_logprobs=num_of(body.prompt_logprobs, model),
        has_token_ids=bool(body.return_token_ids),
        names_tokens_by_id=bool(body.return_tokens_as_token_ids),
        has_echo=has_echo,
        is_prompt_only=is_prompt_only,
        restores_redactions=bool(body.restore_redactions),
        shows_reasoning=body.include_reasoning is not False,
    )


def _check_restoring(body: SamplingBody, model: ServedModel, num_logprobs: int | None) -> None:
    field = "restore_redactions"
    if not model.description.has_preprocessing:
        raise RequestError(f"{field}: model={model.description.name} redacts nothing; leave it out", field=field)
    if num_logprobs is not None or body.prompt_logprobs is not None or body.return_token_ids:
        raise RequestError(
            f"{field} does not work with log-probabilities and token ids, which are those of the redacted text; "
            "send one of them",
            field=field,
        )
