"""The modules of sentence-transformers after its Transformer: token vectors in, one vector for each text out."""

from torch import Tensor, cat, nn
from torch.nn.functional import normalize

from serve_app.checkpoints.embedding_head import (
    SENTENCE,
    TOKENS,
    CutStep,
    DenseStep,
    EmbeddingHead,
    HeadStep,
    LayerNormStep,
    NormalizeStep,
    PoolStep,
)
from serve_app.models.packed_attention import PackedEntries
from serve_app.models.pooling import POOLS, PooledTokens

_Vectors = dict[str, Tensor]


class VectorHead(nn.Module):
    """Runs the steps of a head one after the other, in float32."""

    def __init__(self, head: EmbeddingHead) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_module_of(step) for step in head.steps)

    def forward(self, states: Tensor, entries: PackedEntries, prompt_lengths: Tensor | None) -> Tensor:
        """states [T, D], prompt_lengths [B] int64: tokens of each text's prompt -> vectors [B, E] float32."""
        vectors = {TOKENS: states.float()}
        for step in self.steps:
            if isinstance(step, _Pooling):
                vectors[SENTENCE] = step(vectors[TOKENS], entries, prompt_lengths)
            else:
                step(vectors)
        return vectors[SENTENCE]


class _Pooling(nn.Module):
    def __init__(self, step: PoolStep) -> None:
        super().__init__()
        self._step = step

    def forward(self, states: Tensor, entries: PackedEntries, prompt_lengths: Tensor | None) -> Tensor:
        """states [T, D] -> [B, D * modes]."""
        skipped = None
        if prompt_lengths is not None and not self._step.includes_prompt:
            skipped = prompt_lengths.minimum(entries.lengths - 1)  # a text cut within its prompt keeps its last token
        tokens = PooledTokens(entries, skipped)
        pooled = [POOLS[mode](states, tokens) for mode in self._step.modes]
        return pooled[0] if len(pooled) == 1 else cat(pooled, dim=-1)


class Dense(nn.Module):
    """A linear layer with its activation; what it read may be added to what it gives."""

    def __init__(self, step: DenseStep) -> None:
        super().__init__()
        self.linear = nn.Linear(step.num_inputs, step.num_outputs, bias=step.has_bias)
        self.residual: nn.Module | None = None
        if step.is_residual:
            is_same = step.num_inputs == step.num_outputs
            self.residual = nn.Identity() if is_same else nn.Linear(step.num_inputs, step.num_outputs, bias=False)
        self._activation: nn.Module = getattr(nn, step.activation)()
        self._works_on = step.works_on

    def forward(self, vectors: _Vectors) -> None:
        """[..., D] -> [..., E], in their place."""
        given = vectors[self._works_on]
        made = self._activation(self.linear(given))
        vectors[self._works_on] = made if self.residual is None else made + self.residual(given)


class LayerNorm(nn.Module):
    """Of the vectors of texts."""

    def __init__(self, step: LayerNormStep) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(step.size)

    def forward(self, vectors: _Vectors) -> None:
        """[B, D] -> [B, D], in their place."""
        vectors[SENTENCE] = self.norm(vectors[SENTENCE])


class _Normalize(nn.Module):
    def __init__(self, step: NormalizeStep) -> None:
        super().__init__()
        self._works_on = step.works_on

    def forward(self, vectors: _Vectors) -> None:
        """[..., D] -> [..., D] of length one, in their place."""
        if self._works_on in vectors:  # before the pooling there are none to change
            vectors[self._works_on] = normalize(vectors[self._works_on], dim=-1)


class _Cut(nn.Module):
    def __init__(self, step: CutStep) -> None:
        super().__init__()
        self._size = step.size

    def forward(self, vectors: _Vectors) -> None:
        """[B, D] -> [B, size], in their place."""
        vectors[SENTENCE] = vectors[SENTENCE][:, : self._size]


def _module_of(step: HeadStep) -> nn.Module:
    match step:
        case PoolStep():
            return _Pooling(step)
        case DenseStep():
            return Dense(step)
        case LayerNormStep():
            return LayerNorm(step)
        case NormalizeStep():
            return _Normalize(step)
        case CutStep():
            return _Cut(step)
