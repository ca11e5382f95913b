"""Every error of ours has a reason among the words that are known."""

import pytest

from serve_app import errors
from serve_app.metrics.refusals import ALL_REASONS, OTHER, reason_of

ERRORS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.RayshardError)]
OURS = {"RayshardError", "ConfigError", "InternalError"}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_has_a_reason_of_its_own_unless_it_is_our_fault(kind: type[errors.RayshardError]) -> None:
    reason = reason_of(kind("x"))
    assert reason in ALL_REASONS
    assert (reason == OTHER) == (kind.__name__ in OURS)


def test_the_nearest_kind_counts() -> None:
    assert reason_of(errors.TooManyTokensError("x")) == "rate_limited"
    assert reason_of(errors.StepLostError("x")) == "shard_lost"
    assert reason_of(errors.UnprocessableError("x")) == "invalid"
    assert reason_of(KeyError("x")) == OTHER
