"""A disk without room is told as what it is; what else is wrong with it stays a fault of the server."""

import errno

import pytest

from serve_app.errors import UnavailableError
from serve_app.gateway.batches.service import disk_errors


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_503(code: int) -> None:
    with pytest.raises(UnavailableError, match="is full") as told, disk_errors():
        raise OSError(code, "full")
    assert told.value.retry_after_s == 60.0


def test_another_error_of_the_disk_is_not_hidden() -> None:
    with pytest.raises(PermissionError), disk_errors():
        raise PermissionError(errno.EACCES, "no")
