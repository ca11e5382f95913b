"""One choice of a prompt while it grows: tokens become text, up to a stop, taken apart where there is more in it."""

from dataclasses import dataclass

import msgspec

from serve_app.preprocessing.answers.answer_parser import AnswerFormat, AnswerParser
from serve_app.preprocessing.answers.parts import AnswerParts
from serve_app.preprocessing.answers.reasoning_count import ReasoningCount
from serve_app.preprocessing.pii import Restorer
from serve_app.preprocessing.stop_strings import StopStrings
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.generation import FinishReason, GenerateRequest, OutputChunk, TokenLogprobs


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How generated tokens are shown."""

    stops: StopStrings
    num_choices: int = 1
    skip_special_tokens: bool = True
    is_stream: bool = False
    has_usage: bool = False  # a last chunk with the counts
    has_continuous_usage: bool = False  # counts in every chunk
    num_logprobs: int | None = None
    compares_tokens: bool = False  # its alternatives are named by the request, and are all shown
    num_prompt_logprobs: int | None = None  # asked for by name, not by echo
    has_token_ids: bool = False
    names_tokens_by_id: bool = False  # in log-probabilities
    has_echo: bool = False
    is_prompt_only: bool = False  # nothing is wanted of the answer
    restores_redactions: bool = False
    answer_format: AnswerFormat | None = None  # what a chat's answer may hold beside content; None: nothing
    shows_reasoning: bool = True
    max_reasoning_tokens: int | None = None  # its marks included; None: as many as it takes


class ChoiceDelta(msgspec.Struct, frozen=True, gc=False):
    """What one choice grew by. `text` may lag behind `token_ids`."""

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_texts: list[str]  # beside logprobs: what each token adds to the text; empty without
    parts: AnswerParts | None = None  # beside text, where there is more: reasoning and calls
    has_calls: bool = False  # beside finish_reason: it ends for its calls to be made


class Choice:
    """Decodes the tokens of one choice."""

    __slots__ = (
        "_detokenizer",
        "_hidden_tokens",
        "_includes_stop",
        "_index",
        "_is_hidden",
        "_logprobs",
        "_matcher",
        "_params",
        "_parser",
        "_reasoning_count",
        "_restorer",
        "_shows_reasoning",
        "_token_ids",
        "_token_texts",
        "has_ended",
        "num_tokens",
    )

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        options: OutputOptions,
        tokenizer: Tokenizer,
        restorer: Restorer | None,
    ) -> None:
        self.has_ended = False
        self.num_tokens = 0
        self._index = index
        self._params = request.params
        self._detokenizer = tokenizer.detokenizer(
            skip_special_tokens=options.skip_special_tokens,
            after=request.prompt_token_ids,
            shown=() if options.answer_format is None else options.answer_format.marks,
        )
        self._parser = None if options.answer_format is None else AnswerParser(options.answer_format)
        reasoning = None if options.answer_format is None else options.answer_format.reasoning
        self._reasoning_count = None if reasoning is None else ReasoningCount(reasoning.end, tokenizer.table.text_of)
        self._shows_reasoning = options.shows_reasoning
        self._matcher = options.stops.matcher()
        self._hidden_tokens = tokenizer.table.special_tokens if options.stops.has_special else None  # by id
        self._restorer = restorer
        self._includes_stop = options.stops.include_in_output
        self._is_hidden = options.is_prompt_only
        self._token_ids: list[int] = []  # not yet emitted: their text is not certain yet
        self._logprobs: list[TokenLogprobs] = []
        self._token_texts: list[str] | None = None if request.params.num_logprobs is None else []

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far."""
        return 0 if self._reasoning_count is None else self._reasoning_count.num_tokens

    def feed(self, chunk: OutputChunk) -> ChoiceDelta | None:
        """What can be shown now; None while nothing can."""
        if self._is_hidden:
            self.has_ended = True
            logprobs = None if self._params.num_logprobs is None else self._logprobs
            return ChoiceDelta(self._index, "", [], logprobs, "length", None, [])
        text, num_used = self._decode(chunk)
        self._token_ids += chunk.token_ids[:num_used]
        if chunk.logprobs is not None:
            self._logprobs += chunk.logprobs[:num_used]
        finish_reason: FinishReason | None = chunk.finish_reason
        stop_reason: int | str | None = None if chunk.stop_token_id is None else self._stop_reason(chunk)
        if self._matcher is not None and self._matcher.matched is not None:
            finish_reason, stop_reason = "stop", self._matcher.matched
        self.has_ended = finish_reason is not None
        if self._restorer is not None:
            text = self._restorer.feed(text) + (self._restorer.flush() if self.has_ended else "")
        parts, has_calls = None, False
        if self._parser is not None:
            parts = self._take_apart(self._parser, text, chunk.token_ids[:num_used])
            text = parts.content
            has_calls = finish_reason == "stop" and self._parser.has_calls
            if self._parser.is_done:  # with the one call that it may have
                self.has_ended, finish_reason, stop_reason, has_calls = True, "stop", None, True
            elif self._parser.is_plain:
                self._parser = None
            if not (parts.reasoning or parts.calls):
                parts = None
        if not text and parts is None and not self.has_ended:
            return None
        logprobs = None if self._params.num_logprobs is None else self._logprobs
        texts = self._token_texts or []
        delta = ChoiceDelta(
            self._index, text, self._token_ids, logprobs, finish_reason, stop_reason, texts, parts, has_calls
        )
        self._token_ids, self._logprobs = [], []
        if self._token_texts is not None:
            self._token_texts = []
        return delta

    def _take_apart(self, parser: AnswerParser, text: str, token_ids: list[int]) -> AnswerParts:
        parts = parser.feed(text)
        if self.has_ended:
            parts.add(parser.flush())
        if self._reasoning_count is not None:
            self._reasoning_count.feed(token_ids, parts, is_ended=self.has_ended)
        if not self._shows_reasoning:
            parts.reasoning = ""
        return parts

    def _decode(self, chunk: OutputChunk) -> tuple[str, int]:
        """New text, and how many of the chunk's tokens it took: none follow one that completes a stop string."""
        pieces: list[str] = []
        last_index = len(chunk.token_ids) - 1
        is_last_hidden = chunk.finish_reason == "stop" and chunk.stop_token_id is not None and not self._includes_stop
        for index, token_id in enumerate(chunk.token_ids):
            self.num_tokens += 1
            piece = "" if is_last_hidden and index == last_index else self._detokenizer.push(token_id)
            if self._token_texts is not None:
                self._token_texts.append(piece)
            pieces.append(piece if self._matcher is None else self._filter(piece))
            if self._hidden_tokens is not None and not piece:
                pieces.append(self._filter(self._hidden_tokens.get(token_id, ""), is_hidden=True))
            if self._matcher is not None and self._matcher.matched is not None:
                return "".join(pieces), index + 1
        if chunk.finish_reason is not None:
            piece = self._detokenizer.flush()
            if self._token_texts:
                self._token_texts[-1] += piece
            pieces.append(self._filter(piece))
            if self._matcher is not None:
                pieces.append(self._matcher.flush())
        return "".join(pieces), len(chunk.token_ids)

    def _filter(self, text: str, *, is_hidden: bool = False) -> str:
        """Stop strings count only after min_tokens."""
        if self._matcher is None or self.num_tokens <= self._params.min_tokens:
            return "" if is_hidden else text
        return self._matcher.feed_hidden(text) if is_hidden else self._matcher.feed(text)

    def _stop_reason(self, chunk: OutputChunk) -> int | None:
        return chunk.stop_token_id if chunk.stop_token_id in self._params.stop_token_ids else None
