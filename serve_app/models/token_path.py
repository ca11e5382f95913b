"""Token embeddings on the straight way from a baseline to a model's input."""

import torch
from torch import Tensor, nn

from serve_app.models.batch_stage import BatchStage


class EmbeddingError(ValueError):
    """A module does not look its tokens up once in its embedding."""


class TokenPath:
    """Runs a first stage with points of such paths in place of the vectors that its embedding gives.

    The stage may lay its tokens out as it likes before it looks them up: where each went is found out first.
    """

    def __init__(self, stage: BatchStage, inputs: dict[str, Tensor], baseline: Tensor, positions: Tensor) -> None:
        """baseline [T] int64: token ids, -1 for zeros; positions [T] float32: 0 at the baseline, 1 at the input."""
        embedding = stage.token_embedding
        assert embedding is not None, "a model without one is refused"
        self._stage, self._embedding, self._inputs = stage, embedding, inputs
        self._layout = self._find_layout()  # of tokens, counted from 1; 0: padding
        self._position = _laid_out(positions, self._layout)[..., None]
        ids = _laid_out(baseline, self._layout)
        with torch.no_grad():
            self._start = embedding(ids.clamp(min=0)).masked_fill((ids < 0)[..., None], 0)
        self.points: list[Tensor] = []  # [..., D], a leaf with a gradient; one when the stage has run
        self._difference: Tensor | None = None

    def forward(self) -> dict[str, Tensor]:
        """What the stage gives. Raises EmbeddingError."""

        def on_path(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            self._difference = output.detach() - self._start
            between = self._start + self._position * self._difference
            point: Tensor = between.to(output.dtype).requires_grad_()
            self.points.append(point)
            return point

        handle = self._embedding.register_forward_hook(on_path)
        try:
            outputs = self._stage.forward(self._inputs, None)
        finally:
            handle.remove()
        if len(self.points) != 1:
            raise EmbeddingError(f"the module has looked its tokens up {len(self.points)} times")
        return outputs

    def slopes(self, gradient: Tensor) -> Tensor:
        """gradient [..., D] of the point -> [T] float32: how fast the output grows along the path, by token."""
        assert self._difference is not None
        products = (gradient.float() * self._difference.float()).sum(dim=-1).flatten()
        num_tokens = len(self._inputs["input_ids"])
        by_number: Tensor = products.new_zeros(num_tokens + 1).index_add_(0, self._layout.flatten(), products)
        return by_number[1:]

    def _find_layout(self) -> Tensor:
        found: list[Tensor] = []

        def take(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0])
            raise _FoundError

        ids = self._inputs["input_ids"]
        numbered = torch.arange(1, len(ids) + 1, device=ids.device)
        handle = self._embedding.register_forward_pre_hook(take, prepend=True)
        try:
            self._stage.forward({**self._inputs, "input_ids": numbered}, None)
        except _FoundError:
            return found[0]
        finally:
            handle.remove()
        raise EmbeddingError("the module does not look its tokens up in its embedding")


class _FoundError(Exception):
    """The embedding was reached."""


def _laid_out(values: Tensor, layout: Tensor) -> Tensor:
    """values [T] -> [...] where the layout has their tokens; 0 where it has padding."""
    return torch.cat([values.new_zeros(1), values])[layout]
