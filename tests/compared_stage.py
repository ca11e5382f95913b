"""A stage whose every step runs through its layers and through its compiled decoder."""

import torch
from torch import Tensor

from serve_app.engine.model_runner import ModelRunner
from serve_app.models.step_attention import StageAttention


class Compared:
    """A stage that runs each step twice, and counts those that its decoder takes."""

    def __init__(self, runner: ModelRunner) -> None:
        self._stage, self._cache = runner._stage, runner._cache
        self._forward = runner._stage.forward
        self.num_taken = 0
        self._stage.forward = self  # type: ignore[method-assign, assignment]

    def __call__(self, inputs: Tensor, positions: Tensor, attention: StageAttention, rows: Tensor | None) -> Tensor:
        decoder, self._stage._decoder = self._stage._decoder, None
        assert decoder is not None
        expected, stored = self._forward(inputs, positions, attention, rows), self._stored()
        self._stage._decoder = decoder
        for tensor, slots in ((one, attention.compiled_rows()) for one in (*self._cache.keys, *self._cache.values)):
            if slots is not None:
                tensor[slots.slots] = 0  # what the decoder does not store is missed
        found = self._forward(inputs, positions, attention, rows)
        assert torch.equal(found, expected), (found - expected).abs().amax(dim=1)
        assert all(map(torch.equal, self._stored(), stored))
        self.num_taken += attention.compiled_rows() is not None
        return found

    def _stored(self) -> list[Tensor]:
        return [one.clone() for one in (*self._cache.keys, *self._cache.values)]
