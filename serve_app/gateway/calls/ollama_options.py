"""Ollama's `options`, `format` and `keep_alive` as our own keys; what cannot be kept is refused."""

import re

from serve_app.errors import ContextLengthError, RequestError
from serve_app.gateway.bodies.ollama import OllamaBody, OllamaOptions, OllamaTextBody
from serve_app.gateway.bodies.openai import SamplingBody
from serve_app.gateway.bodies.structured import JsonSchemaFormat, ResponseFormat
from serve_app.gateway.calls.models import ServedModel

FIELDS = {  # ours to Ollama's, in errors
    "max_tokens": "options.num_predict",
    "max_completion_tokens": "options.num_predict",
    "stop": "options.stop",
    "response_format.json_schema.schema": "format",
    "response_format": "format",
}
_TEXT_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty")
_NEUTRAL = {  # values that ask for nothing
    "typical_p": 1,
    "tfs_z": 1,
    "mirostat": 0,
    "penalize_newline": False,
    "numa": False,
    "low_vram": False,
    "logits_all": False,
    "vocab_only": False,
    "embedding_only": False,
}
_OF_SAMPLING = ("typical_p", "tfs_z", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline", "num_keep")
_OF_LOADING = (
    "numa",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mmap",
    "use_mlock",
    "embedding_only",
    "num_thread",
)
_OF_TEXT = (*_TEXT_OPTIONS, "num_predict", "stop", "repeat_penalty", "repeat_last_n")
_DURATION = re.compile(r"(-?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")


def check_options(body: OllamaBody) -> OllamaOptions:
    """The options, without those that cannot be kept. Raises RequestError."""
    _check_keep_alive(body.keep_alive)
    options = body.options or OllamaOptions()
    for name in (*_OF_SAMPLING, *_OF_LOADING):
        value = getattr(options, name)
        if value is None or (name in _NEUTRAL and value == _NEUTRAL[name]):
            continue
        reason = "is not supported" if name in _OF_SAMPLING else "is of how a model is loaded, which its YAML says"
        raise RequestError(f"options.{name} {reason}; leave it out", field=f"options.{name}")
    return options


def refuse_text_options(options: OllamaOptions) -> None:
    """Raises RequestError for what only generated texts can have."""
    for name in _OF_TEXT:
        if getattr(options, name) is not None:
            field = f"options.{name}"
            raise RequestError(f"{field} is for models that generate text; leave it out", field=field)


def set_sampling(own: SamplingBody, body: OllamaTextBody) -> None:
    """Put what a body asks for of its text into one of ours. Raises RequestError."""
    options = check_options(body)
    for name in ("truncate", "shift"):
        if getattr(body, name):
            message = f"{name}=true: no part of a prompt is left out here; send less, or leave {name} out"
            raise RequestError(message, field=name)
    own.stream = body.stream is not False
    own.priority = body.priority
    own.response_format = _response_format(body.format)
    own.stop = options.stop
    own.max_tokens = None if options.num_predict is None or options.num_predict < 0 else options.num_predict
    for name in _TEXT_OPTIONS:
        setattr(own, name, getattr(options, name))
    if options.seed == -1:
        own.seed = None
    own.repetition_penalty = _repetition_penalty(options)


def context_limit(options: OllamaOptions, model: ServedModel) -> int | None:
    """Tokens that prompt and answer may have together by `num_ctx`; None: the model's own. Raises RequestError."""
    asked, most = options.num_ctx, model.max_context_tokens
    if asked is not None and asked > most:
        message = (
            f"options.num_ctx={asked} is more than the context of model={model.description.name}; send at most {most}"
        )
        raise RequestError(message, field="options.num_ctx")
    return asked


def room_in_context(limit: int, num_prompt_tokens: int, asked_tokens: int | None, max_tokens: int) -> int:
    """max_tokens within the context that was asked for. Raises ContextLengthError."""
    room = limit - num_prompt_tokens
    if room <= 0 or (asked_tokens is not None and asked_tokens > room):
        advice = f"send options.num_predict of at most {room}" if room > 0 else "send less"
        raise ContextLengthError(
            f"options.num_ctx={limit} has no room for a prompt of {num_prompt_tokens} tokens and "
            f"{asked_tokens or 'some'} of an answer; {advice}, or raise it",
            field="options.num_ctx",
        )
    return min(max_tokens, room)


def _repetition_penalty(options: OllamaOptions) -> float | None:
    if options.repeat_last_n not in (None, -1, 0):
        field = "options.repeat_last_n"
        message = f"{field}={options.repeat_last_n}: a penalty looks at all tokens here; leave it out, or send -1"
        raise RequestError(message, field=field)
    return 1.0 if options.repeat_last_n == 0 else options.repeat_penalty


def _response_format(given: str | dict[str, object] | None) -> ResponseFormat | None:
    if given is None or given == "":
        return None
    if isinstance(given, dict):
        return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=given))
    if given != "json":
        raise RequestError(f'format={given[:32]!r} is not known; send "json" or a JSON schema', field="format")
    return ResponseFormat(type="json_object")


def _check_keep_alive(given: float | str | None) -> None:
    """A model stays as long as it is deployed: longer than any time, but not shorter."""
    if given is None:
        return
    shown = str(given)[:32]
    if isinstance(given, str) and not (_DURATION.fullmatch(given) or given in ("0", "-1")):
        message = f'keep_alive={shown!r} is not a duration; send seconds, or a text such as "5m"'
        raise RequestError(message, field="keep_alive")
    if given == 0 or (isinstance(given, str) and not re.search("[1-9]", given)):
        message = f"keep_alive={shown}: no request unloads a model here; leave it out"
        raise RequestError(message, field="keep_alive")
