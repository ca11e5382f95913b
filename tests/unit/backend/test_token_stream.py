"""A request's stream of tokens: in order, complete, or an error."""

import pytest

from serve_app.backend.token_stream import TokenStream
from serve_app.errors import InternalError, RequestAbortedError, UnavailableError, UnprocessableError
from serve_app.types.generation import Completion, FinishReason, OutputChunk, Progress, TokenLogprobs


def chunk(
    index: int, finish_reason: FinishReason | None = None, *, choice: int = 0, num_tokens: int = 1
) -> OutputChunk:
    return OutputChunk(choice, index, list(range(num_tokens)), finish_reason=finish_reason)


class Reader:
    """Takes chunks until it has enough."""

    def __init__(self, num_choices: int = 1, num_wanted: int = 1000) -> None:
        self.taken: list[OutputChunk] = []
        self.stream = TokenStream(num_choices, self.take)
        self._num_wanted = num_wanted

    def take(self, one: OutputChunk) -> bool:
        self.taken.append(one)
        return len(self.taken) < self._num_wanted


def test_chunks_are_handed_on_as_they_come() -> None:
    reader = Reader(num_choices=2)
    chunks = [chunk(0), chunk(0, choice=1), chunk(1, "stop", choice=1), chunk(1, num_tokens=3), chunk(4, "length")]
    assert all(reader.stream.feed(one) for one in chunks)
    assert reader.taken == chunks
    assert reader.stream.has_ended
    reader.stream.check_end(Completion(3, [5, 2], ["length", "stop"]))


@pytest.mark.parametrize("index", [2, 0], ids=["a gap", "again"])
def test_tokens_that_do_not_follow_are_an_error(index: int) -> None:
    reader = Reader()
    reader.stream.feed(chunk(0))
    with pytest.raises(InternalError, match=rf"tokens were lost before token {index} of choice 0"):
        reader.stream.feed(chunk(index))
    assert reader.taken == [chunk(0)]


def test_what_another_copy_has_to_know_is_what_was_handed_on() -> None:
    stream = Reader(num_choices=2).stream
    logprobs = [TokenLogprobs(7, -1.0, 1, [], []), TokenLogprobs(8, -1.0, 1, [], [])]
    stream.feed(OutputChunk(0, 0, [], prompt_logprobs=logprobs))
    stream.feed(OutputChunk(0, 0, [5, 6]))
    stream.feed(OutputChunk(1, 0, [7], finish_reason="stop"))
    progress = stream.progress(is_suspect=True, max_replayed_tokens=1)
    stream.feed(OutputChunk(0, 2, [9]))
    assert progress == Progress([[5, 6], [7]], [False, True], num_prompt_logprobs=2, is_suspect=True)
    assert not stream.has_ended


def test_a_gap_is_seen_after_a_chunk_of_several_tokens() -> None:
    stream = Reader(num_choices=2).stream
    stream.feed(chunk(0, num_tokens=3))
    stream.feed(chunk(3))
    stream.feed(chunk(0, choice=1))
    with pytest.raises(InternalError):
        stream.feed(chunk(3, choice=1))


def test_a_reader_that_has_enough_says_so() -> None:
    reader = Reader(num_wanted=2)
    assert reader.stream.feed(chunk(0))
    assert not reader.stream.feed(chunk(1))


@pytest.mark.parametrize(("reason", "error"), [("abort", RequestAbortedError), ("error", InternalError)])
def test_a_choice_that_ends_badly_is_an_error(reason: FinishReason, error: type[Exception]) -> None:
    reader = Reader()
    with pytest.raises(error):
        reader.stream.feed(OutputChunk(0, 0, [], finish_reason=reason))
    assert reader.taken == []


def test_a_choice_whose_step_had_no_memory_may_be_asked_for_again() -> None:
    with pytest.raises(UnavailableError, match="lower engine") as raised:
        Reader().stream.feed(OutputChunk(0, 0, [], finish_reason="error", error="no memory; lower engine.max_num_seqs"))
    assert raised.value.is_retryable


def test_an_answer_that_its_grammar_lets_go_nowhere_is_the_requests_fault() -> None:
    told = OutputChunk(0, 0, [], finish_reason="error", error="change the schema", is_request_at_fault=True)
    with pytest.raises(UnprocessableError, match="change the schema") as raised:
        Reader().stream.feed(told)
    assert not raised.value.is_retryable


def test_a_request_that_ends_before_its_last_tokens_is_an_error() -> None:
    stream = Reader(num_choices=2).stream
    stream.feed(chunk(0, "stop"))
    stream.feed(chunk(0, choice=1))
    with pytest.raises(InternalError, match="the last tokens were lost: 3 were drawn"):
        stream.check_end(Completion(3, [1, 2], ["stop", "stop"]))
