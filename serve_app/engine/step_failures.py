"""What is told of a step that has failed: never what it was given."""

import torch

from serve_app.models.token_path import EmbeddingError


class OutputError(ValueError):
    """A module's output is not what it declares. Its message quotes names, shapes and dtypes only."""


def told(error: Exception) -> str:
    """The kind of an error, with what may be said of it."""
    kind = type(error).__name__
    if isinstance(error, OutputError | EmbeddingError):
        return f"{kind}: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{kind}: the GPU had no memory for the step; send shorter inputs, or lower engine.max_num_batched_tokens "
            "or engine.max_num_seqs"
        )
    return kind
