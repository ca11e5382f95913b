"""What a gRPC message may weigh. Serve's proxy takes up to 2 GiB, so the limit is kept here, as for HTTP's bodies."""

from google.protobuf.message import Message

from serve_app.errors import RequestTooLargeError


def check_size(message: Message, max_bytes: int) -> None:
    """Raises RequestTooLargeError."""
    size = message.ByteSize()
    if size > max_bytes:
        raise RequestTooLargeError(
            f"the message has {size} bytes, more than max_request_bytes={max_bytes}; send less", field="body"
        )
