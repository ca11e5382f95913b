"""The tokens of one request on their way from a Router."""

from serve_app.backend.protocol import TakeChunk
from serve_app.errors import InternalError, RequestAbortedError, UnavailableError
from serve_app.types.generation import Completion, OutputChunk


class TokenStream:
    """Sees that every token of every choice comes, once and in order, and hands the chunks on."""

    def __init__(self, num_choices: int, take: TakeChunk) -> None:
        self.has_begun = False
        self._take = take
        self._num_unfinished = num_choices
        self._next_indexes = [0] * num_choices

    def feed(self, chunk: OutputChunk) -> bool:
        """Take a chunk in; False when no more is wanted.

        Raises InternalError after a gap or where the model failed, UnavailableError where a step of it had no memory,
        RequestAbortedError, and what `take` raises.
        """
        self.has_begun = True
        if chunk.finish_reason == "abort":
            raise RequestAbortedError("the request was aborted")
        if chunk.error is not None:
            raise UnavailableError(chunk.error, retry_after_s=1.0)
        if chunk.finish_reason == "error":
            raise InternalError("the model failed on this request; see the server's log")
        if chunk.first_index != self._next_indexes[chunk.choice]:
            raise InternalError(f"tokens were lost before token {chunk.first_index} of choice {chunk.choice}")
        self._next_indexes[chunk.choice] += len(chunk.token_ids)
        self._num_unfinished -= chunk.finish_reason is not None
        return self._take(chunk)

    def check_end(self, completion: Completion) -> None:
        """The Router says that the request has ended: all that it sent has arrived. Raises InternalError."""
        if self._num_unfinished:
            raise InternalError(f"the last tokens were lost: {sum(completion.num_output_tokens)} were drawn")
