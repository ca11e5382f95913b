"""Why requests end with an error, in a few words that do not change."""

from serve_app import errors

_REASONS: dict[type[Exception], str] = {
    errors.ContextLengthError: "context_length",
    errors.ModelNotFoundError: "model_not_found",
    errors.SlowRequestError: "slow_request",
    errors.RequestTooLargeError: "too_large",
    errors.HeadersTooLargeError: "too_large",
    errors.RequestError: "invalid",
    errors.UnauthenticatedError: "unauthenticated",
    errors.ForbiddenError: "forbidden",
    errors.RateLimitedError: "rate_limited",
    errors.QueueFullError: "queue_full",
    errors.ShardLostError: "shard_lost",
    errors.UnavailableError: "unavailable",
    errors.TimeoutExceededError: "timeout",
    errors.RequestAbortedError: "aborted",
}
OTHER = "internal"
ALL_REASONS = frozenset({*_REASONS.values(), OTHER})


def reason_of(error: BaseException) -> str:
    """The word of ALL_REASONS for an error."""
    return next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), OTHER)
