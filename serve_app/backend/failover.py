"""A generation that outlives its copy: what was drawn stands, and another copy goes on behind it."""

import logging
import time
from dataclasses import replace

from serve_app.backend.prompt_marks import RoutedPrompt
from serve_app.backend.replica_calls import MakeCall, ReplicaCalls, ReplicaLostError
from serve_app.backend.time_left import TimeLeft
from serve_app.backend.token_stream import TokenStream
from serve_app.config.failover import FailoverConfig
from serve_app.errors import InternalError, ShardLostError, StepLostError, UnavailableError
from serve_app.tracing.attributes import ERROR_TYPE, OUTPUT_TOKENS
from serve_app.tracing.tracing import add_event
from serve_app.types.generation import Completion, GenerateRequest
from serve_app.types.links import LinkAddress
from serve_app.wire.messages import PROTOCOL_VERSION, Call, GenerateMessage, GenerateReply, Reply

logger = logging.getLogger(__name__)

_LEAST_WAIT_S = 0.1


async def generate_on(
    calls: ReplicaCalls,
    request: GenerateRequest,
    stream: TokenStream,
    failover: FailoverConfig,
    prompt: RoutedPrompt | None = None,
) -> Completion | None:
    """Run a request to the end of its stream, on as many copies as it takes; None: its end was not told.

    Without a prompt it goes to the least busy copy.

    Its tokens are those of a run without a loss: the random numbers of a draw follow from seed, choice and position,
    and what was drawn is computed again as it was. (A prefill of many tokens at once rounds differently: above
    `max_replayed_tokens` a draw between two tokens that are almost as likely may fall the other way.)
    Raises a RayshardError: UnavailableError when its copies were lost more than `max_resumes` times, or none has taken
    it up within `max_pause_s`.
    """
    left = TimeLeft(request.time_left_s)
    with calls.counted():
        make, wait_s = _first_call(request, left), request.queue_timeout_s
        num_losses = 0
        while True:
            try:
                reply = await calls.call_once(make, wait_s, stream, prompt)
            except (ReplicaLostError, ShardLostError) as loss:
                num_losses += 1
                if stream.has_ended:
                    return None  # only the word that it has was lost
                if num_losses > failover.max_resumes:
                    raise _given_up(loss, num_losses) from None
                make, wait_s = _next_call(request, left, stream, loss, failover), failover.max_pause_s
                calls.num_resumes += 1
                _log(request, stream, num_losses)
                add_event("resume", {ERROR_TYPE: type(loss).__name__, OUTPUT_TOKENS: stream.num_tokens})
            else:
                return _check_end(stream, reply)


def _first_call(request: GenerateRequest, left: TimeLeft) -> MakeCall:
    def make(number: int, reply_to: LinkAddress) -> Call:
        return GenerateMessage(PROTOCOL_VERSION, 0, number, reply_to, replace(request, time_left_s=left.seconds))

    return make


def _next_call(
    request: GenerateRequest, left: TimeLeft, stream: TokenStream, loss: Exception, failover: FailoverConfig
) -> MakeCall:
    """Goes on where the stream stands; what is left of the pause is its time in the copy's queue."""
    progress = stream.progress(
        is_suspect=isinstance(loss, ReplicaLostError | StepLostError), max_replayed_tokens=failover.max_replayed_tokens
    )
    deadline_s = time.monotonic() + failover.max_pause_s

    def make(number: int, reply_to: LinkAddress) -> Call:
        pause_s = max(_LEAST_WAIT_S, deadline_s - time.monotonic())
        rest = replace(request, progress=progress, queue_timeout_s=pause_s, time_left_s=left.seconds)
        return GenerateMessage(PROTOCOL_VERSION, 0, number, reply_to, rest)

    return make


def _check_end(stream: TokenStream, reply: Reply | None) -> Completion | None:
    if reply is None:
        return None  # the stream has all that is wanted
    if not isinstance(reply, GenerateReply):
        raise InternalError(f"a {type(reply).__name__} came where a GenerateReply was due")
    stream.check_end(reply.completion)
    return reply.completion


def _given_up(loss: Exception, num_losses: int) -> UnavailableError:
    reason = loss.message if isinstance(loss, ShardLostError) else "the copy of the model that ran the request has died"
    times = f" ({num_losses} times on this request)" if num_losses > 1 else ""
    kind = type(loss) if isinstance(loss, ShardLostError) else UnavailableError
    return kind(f"{reason}{times}; try again", retry_after_s=1.0)


def _log(request: GenerateRequest, stream: TokenStream, num_losses: int) -> None:
    logger.warning(
        "copy lost, request goes on id=%s num_tokens=%d num_losses=%d",
        request.request_id,
        stream.num_tokens,
        num_losses,
    )
