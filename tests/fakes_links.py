"""Messages as the links carry them."""

from serve_app.types.generation import OutputChunk
from serve_app.wire.messages import TokenBatch


def batch_of(sender: str, chunks: list[tuple[int, OutputChunk]]) -> TokenBatch:
    """The (stream, chunk) pairs of one step as one message."""
    batch = TokenBatch.empty(sender)
    for stream, chunk in chunks:
        batch.add(stream, chunk)
    return batch
