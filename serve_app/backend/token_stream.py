"""The tokens of one request on their way from a Router, or from several, one after the other."""

from serve_app.backend.protocol import TakeChunk
from serve_app.errors import InternalError, RequestAbortedError, UnavailableError, UnprocessableError
from serve_app.types.generation import Completion, OutputChunk, Progress
from serve_app.types.models import ModelVersion


class TokenStream:
    """Sees that every token of every choice comes, once and in order, and hands the chunks on."""

    def __init__(self, num_choices: int, take: TakeChunk) -> None:
        self._take = take
        self._token_ids: list[list[int]] = [[] for _ in range(num_choices)]
        self._ended = [False] * num_choices
        self._num_prompt_logprobs = 0
        self.version: ModelVersion | None = None  # of the model that the last copy ran

    def feed(self, chunk: OutputChunk) -> bool:
        """Take a chunk in; False when no more is wanted.

        Raises InternalError after a gap or where the model failed, UnavailableError where a step of it had no memory,
        UnprocessableError where the answer cannot be what was asked for, RequestAbortedError, and what `take` raises.
        """
        if chunk.finish_reason == "abort":
            raise RequestAbortedError("the request was aborted")
        if chunk.error is not None and chunk.is_request_at_fault:
            raise UnprocessableError(chunk.error)
        if chunk.error is not None:
            raise UnavailableError(chunk.error, retry_after_s=1.0)
        if chunk.finish_reason == "error":
            raise InternalError("the model failed on this request; see the server's log")
        token_ids = self._token_ids[chunk.choice]
        if chunk.first_index != len(token_ids):
            raise InternalError(f"tokens were lost before token {chunk.first_index} of choice {chunk.choice}")
        token_ids += chunk.token_ids
        if chunk.finish_reason is not None:
            self._ended[chunk.choice] = True
        if chunk.prompt_logprobs is not None:
            self._num_prompt_logprobs += len(chunk.prompt_logprobs)
        return self._take(chunk)

    @property
    def num_choices(self) -> int:
        """Sequences that the request is."""
        return len(self._ended)

    @property
    def num_tokens(self) -> int:
        """Tokens of all choices so far."""
        return sum(map(len, self._token_ids))

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return self.num_tokens > 0 or self._num_prompt_logprobs > 0

    def can_go_on_with(self, version: ModelVersion | None) -> bool:
        """Whether it stays one model's answer with a copy of this version; the prompt's tokens are of one already."""
        if version is None or self.version is None:
            return True
        return version == self.version if self.has_begun else version.tokens == self.version.tokens

    @property
    def has_ended(self) -> bool:
        """Whether all choices have."""
        return all(self._ended)

    def progress(self, *, is_suspect: bool, max_replayed_tokens: int) -> Progress:
        """What another copy has to know to go on."""
        is_replayed = max(map(len, self._token_ids)) <= max_replayed_tokens
        return Progress(
            [list(one) for one in self._token_ids],
            list(self._ended),
            self._num_prompt_logprobs,
            is_suspect=is_suspect,
            is_replayed=is_replayed,
        )

    def check_end(self, completion: Completion) -> None:
        """The Router says that the request has ended: all that it sent has arrived. Raises InternalError."""
        if not self.has_ended:
            raise InternalError(f"the last tokens were lost: {sum(completion.num_output_tokens)} were drawn")
