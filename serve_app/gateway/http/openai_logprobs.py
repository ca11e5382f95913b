"""Log-probabilities in the three shapes clients know: OpenAI's two, and vLLM's for prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from serve_app.gateway.calls.choice import OutputOptions
from serve_app.gateway.calls.generation import GenerationCall, PromptRun
from serve_app.preprocessing.token_table import TokenTable
from serve_app.types.generation import TokenLogprobs

_LOWEST = -9999.0  # JSON has no -Infinity; vLLM's stand-in


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a completion: four lists, an entry for each token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative of a chat token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    """One token of a chat answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a chat answer."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class RankedLogprob(msgspec.Struct, frozen=True):
    """One alternative of a prompt token."""

    logprob: float
    rank: int
    decoded_token: str


PromptTokenLogprobs = dict[str, RankedLogprob]  # by token id


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt that stands before its answer."""

    run: PromptRun
    texts: list[str]  # what each of its tokens adds


def completion_logprobs(
    entries: Sequence[TokenLogprobs],
    texts: Sequence[str],
    call: GenerationCall,
    echoed: EchoedPrompt | None,
    text_offset: int,
) -> CompletionLogprobs | None:
    """Of output tokens, after those of the echoed prompt when there is one. None: not asked for.

    `tokens` join to the text: a character counts for its last token, and a token that is not shown is empty.
    """
    if call.options.num_logprobs is None:
        return None
    name = _names(call)
    rows: list[TokenLogprobs | None] = list(entries)
    tokens = list(texts)
    if echoed is not None:
        rows = [None, *echoed.run.prompt_logprobs, *entries]
        tokens = [*echoed.texts, *tokens]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(text_offset)
        text_offset += len(token)
    shown = tokens
    if call.options.names_tokens_by_id:
        ids = [entry.token_id for entry in entries]
        shown = [name(one) for one in (*([] if echoed is None else echoed.run.request.prompt_token_ids), *ids)]
    num_top = call.options.num_logprobs
    most = [num_top] * (len(rows) - len(entries)) + [_num_shown(entry, call.options) for entry in entries]
    return CompletionLogprobs(
        text_offset=offsets,
        token_logprobs=[None if row is None else finite(row.logprob) for row in rows],
        tokens=shown,
        top_logprobs=[
            None if row is None else _by_text(row, text, num, name)
            for row, text, num in zip(rows, shown, most, strict=True)
        ],
    )


def chat_logprobs(entries: Sequence[TokenLogprobs], call: GenerationCall) -> ChatLogprobs | None:
    """Of output tokens. None: not asked for."""
    if call.options.num_logprobs is None:
        return None
    return ChatLogprobs([_chat_entry(entry, call) for entry in entries])


def prompt_token_logprobs(run: PromptRun, call: GenerationCall) -> list[PromptTokenLogprobs | None]:
    """An entry for each prompt token; the first has none."""
    table, num_top = call.model.tokenizer.table, call.options.num_prompt_logprobs or 0
    return [None, *(_by_id(entry, num_top, table) for entry in run.prompt_logprobs)]


def _names(call: GenerationCall) -> Callable[[int], str]:
    """How a token is named: by its text, or by its id as vLLM writes it."""
    return "token_id:{}".format if call.options.names_tokens_by_id else call.model.tokenizer.table.text_of


def _num_shown(entry: TokenLogprobs, options: OutputOptions) -> int:
    """How many of an output token's alternatives are shown."""
    return len(entry.top_token_ids) if options.compares_tokens else options.num_logprobs or 0


def _chat_entry(entry: TokenLogprobs, call: GenerationCall) -> ChatTokenLogprob:
    table, name = call.model.tokenizer.table, _names(call)
    top = list(zip(entry.top_token_ids, entry.top_logprobs, strict=True))[: _num_shown(entry, call.options)]
    if call.options.compares_tokens and entry.token_id not in entry.top_token_ids:
        top.insert(0, (entry.token_id, entry.logprob))
    return ChatTokenLogprob(
        token=name(entry.token_id),
        logprob=finite(entry.logprob),
        bytes=list(table.bytes_of(entry.token_id)),
        top_logprobs=[
            TopLogprob(name(token_id), finite(logprob), list(table.bytes_of(token_id))) for token_id, logprob in top
        ],
    )


def _by_text(entry: TokenLogprobs, text: str, num_top: int, name: Callable[[int], str]) -> dict[str, float]:
    """The chosen token always comes first, as `text`; of two that read the same, the likelier counts."""
    shown: dict[str, float] = {}
    for token_id, logprob in zip(entry.top_token_ids[:num_top], entry.top_logprobs, strict=False):
        shown.setdefault(text if token_id == entry.token_id else name(token_id), finite(logprob))
    shown.setdefault(text, finite(entry.logprob))
    return {text: shown.pop(text), **shown}


def _by_id(entry: TokenLogprobs, num_top: int, table: TokenTable) -> PromptTokenLogprobs:
    shown = {str(entry.token_id): RankedLogprob(finite(entry.logprob), entry.rank, table.text_of(entry.token_id))}
    ranked = zip(entry.top_token_ids[:num_top], entry.top_logprobs, strict=False)
    for rank, (token_id, logprob) in enumerate(ranked, start=1):
        shown.setdefault(str(token_id), RankedLogprob(finite(logprob), rank, table.text_of(token_id)))
    return shown


def finite(logprob: float) -> float:
    """What JSON can say of it."""
    return max(logprob, _LOWEST)
