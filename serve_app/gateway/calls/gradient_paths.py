"""Integrated gradients of one text, as items for a model: points of a path, and the integral over what comes back.

Sundararajan, Taly and Yan, arXiv:1703.01365; the points are those of Gauss and Legendre.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.gateway.bodies.explain import Replacement
from serve_app.gateway.calls.hidden_words import Stand
from serve_app.preprocessing.arrays import integer_tensor, to_array, to_tensor_data
from serve_app.preprocessing.model_entries import text_item
from serve_app.preprocessing.text_spans import PlacedTokens, TextSpan
from serve_app.preprocessing.tokenizer import TextEncoding
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import PATH_BASELINE, PATH_POSITION, PATH_TARGET, Item

DEFAULT_STEPS = 50
GRADIENT_STANDS: tuple[Replacement, ...] = ("pad", "zero", "unk", "mask")  # the first that a model has
_ZEROS = -1  # in place of a token id: an embedding of zeros


@dataclass(frozen=True, slots=True)
class Integral:
    """How much each token adds [T] between the values at both ends of a path."""

    attributions: NDArray[np.float64]
    value: float
    baseline_value: float


@dataclass(frozen=True, slots=True)
class GradientPath:
    """Points of a path: its baseline, its end, and those between with their weights [N]."""

    items: list[Item]
    weights: NDArray[np.float64]

    def integrate(self, outputs: Sequence[Item]) -> Integral:
        """outputs: GRADIENT_OUTPUTS of each item."""
        slopes = np.stack([to_array(output["attributions"]) for output in outputs[2:]]).astype(np.float64)  # [N, T]
        baseline_value, value = (float(to_array(output["value"])[0]) for output in outputs[:2])
        return Integral(self.weights @ slopes, value, baseline_value)


def path_items(
    model: ModelDescription, tokens: PlacedTokens, spans: Sequence[TextSpan], stand: Stand, target: int, num_steps: int
) -> GradientPath:
    """The path of a text's words from their baseline; special tokens and a prompt stay as they are on all of it."""
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)
    positions = [0.0, 1.0, *((nodes + 1) / 2).tolist()]
    baseline = list(tokens.token_ids)
    for span in spans:
        for index in span.tokens:
            baseline[index] = _ZEROS if stand.token_id is None else stand.token_id
    given = {
        **text_item(as_encoding(tokens), model),
        PATH_BASELINE: integer_tensor(baseline),
        PATH_TARGET: integer_tensor([target]),
    }
    items = [{**given, PATH_POSITION: to_tensor_data(np.array([one], dtype=np.float32))} for one in positions]
    return GradientPath(items, weights / 2)


def as_encoding(tokens: PlacedTokens) -> TextEncoding:
    """A model's input without the places."""
    return TextEncoding(tokens.token_ids, tokens.type_ids, tokens.num_prompt_tokens)
