"""What is dropped is told once."""

import pytest

from serve_app.wire.sockets import Dropped


def test_each_reason_is_told_once_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    dropped = Dropped()
    for version in [8, 8, 8, *range(100)]:
        dropped.note(f"protocol version {version}")
    assert caplog.text.count("reason=protocol version 8 ") == 1
    assert "processes of different versions of rayshard must not be mixed" in caplog.text
    assert len(caplog.records) == 20
