"""The classic small text classifier: embedding, LSTM, linear. Entries are packed, so padding changes no answer."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from serve_app.types.tensors import TensorSpec


class EmbeddingPart(nn.Module):
    """Token ids to vectors."""

    def __init__(self, vocab_size: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """input_ids [T] int64 -> embedded [T, E]."""
        return {"embedded": self.dropout(self.embedding(state["input_ids"]))}


class RecurrentPart(nn.Module):
    """The maximum of each feature of an LSTM (Hochreiter and Schmidhuber, 1997) over an entry's tokens."""

    def __init__(self, embedding_dim: int, hidden_size: int, num_layers: int, is_bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(embedding_dim, hidden_size, num_layers, batch_first=True, bidirectional=is_bidirectional)

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """embedded [T, E], lengths [B] int64 -> features [B, F]; those of an entry without tokens are zeros."""
        embedded, lengths = state["embedded"], state["lengths"]
        entries = pad_sequence(list(torch.split(embedded, lengths.tolist())), batch_first=True)  # [B, L, E]
        if entries.shape[1] == 0:
            entries = entries.new_zeros(entries.shape[0], 1, embedded.shape[1])
        packed = pack_padded_sequence(entries, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        outputs, _last = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)  # [B, L, F]
        places = torch.arange(outputs.shape[1], device=lengths.device)
        outputs = outputs.masked_fill((places >= lengths[:, None])[:, :, None], -torch.inf)
        features = outputs.amax(dim=1)  # [B, F]
        return {"features": features.masked_fill((lengths == 0)[:, None], 0)}


class LinearPart(nn.Module):
    """Features to one number for each label."""

    def __init__(self, num_features: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, num_labels)

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """features [B, F] -> logits [B, C]."""
        return {"logits": self.linear(self.dropout(state["features"]))}


class TextClassifier(nn.Module):
    """Embedding, LSTM and linear as three parts, which may be on up to three shards."""

    def __init__(
        self,
        vocab_size: int,
        num_labels: int,
        embedding_dim: int = 64,
        hidden_size: int = 64,
        num_layers: int = 1,
        is_bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_features = hidden_size * (2 if is_bidirectional else 1)
        self.embed = EmbeddingPart(vocab_size, embedding_dim, dropout)
        self.recur = RecurrentPart(embedding_dim, hidden_size, num_layers, is_bidirectional)
        self.head = LinearPart(num_features, num_labels, dropout)
        self.inputs = {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))}
        self.outputs = {"logits": TensorSpec("float32", ("batch", num_labels))}

    def parts(self) -> list[nn.Module]:
        """What stages are made of."""
        return [self.embed, self.recur, self.head]

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """input_ids [T] int64, all entries one after the other; lengths [B] int64 -> logits [B, C]."""
        state = {"input_ids": input_ids, "lengths": lengths}
        for part in self.parts():
            state |= part(state)
        return state["logits"]
