"""Whether this Gateway replica takes requests, and how many it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import UnavailableError

_RETRY_S = 5.0  # by then a load balancer has found another server


class Intake:
    """Counts the requests that run, those that ask for health and for documents apart."""

    def __init__(self) -> None:
        self.is_closed = False
        self.num_running = 0

    def close(self) -> None:
        """Take no more; those that run may end."""
        self.is_closed = True

    def check(self) -> None:
        """Raises UnavailableError once it is closed."""
        if self.is_closed:
            message = "the server is draining: it ends when the requests that run have ended; send this one elsewhere"
            raise UnavailableError(message, retry_after_s=_RETRY_S)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While a request runs. Raises UnavailableError once it is closed."""
        self.check()
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
