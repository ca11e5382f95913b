"""The line that tells why a model cannot start."""

import logging

import pytest

from serve_app.deployments.start_failure import told_failure
from serve_app.errors import ConfigError


class WrappedError(ConfigError):
    """As Ray hands on what an actor has raised: of its class, with the actor's traceback as its text."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::Shard.load() (pid=1, ip=10.0.0.1)\nTraceback ...")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("no such\nclass"), "model=m kind=ConfigError reason=no such class"),
        (WrappedError(ConfigError("no such class")), "model=m kind=ConfigError reason=no such class"),
        (WrappedError(ValueError("x")), "model=m kind=ValueError reason=x"),
        (OSError(28, "No space left"), "model=m kind=OSError reason=[Errno 28] No space left"),
    ],
)
def test_the_cause_is_told_in_one_line_and_goes_on(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("serve_app"), "propagate", True)  # another test may have set it
    with pytest.raises(type(error)), told_failure("m"):
        raise error
    assert caplog.messages == [f"model cannot start {told}"]
    assert caplog.records[0].levelno == logging.ERROR
