"""What the files of a model's tokenizer say of its texts, read as the server does: for its start and for `validate`."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.preprocessing.tokenizer import Tokenizer

_MAX_NAMED = 4


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What is told of a model's texts before any comes."""

    warnings: tuple[str, ...] = ()  # it is served all the same


def read_text_facts(directory: Path, vocab_size: int) -> TextFacts:
    """Of a model whose embedding has `vocab_size` rows. Raises ConfigError for a tokenizer that cannot be read."""
    if not (directory / "tokenizer.json").is_file():
        return TextFacts()
    tokenizer = Tokenizer.load(directory)
    return TextFacts(_rowless(tokenizer, vocab_size))


def _rowless(tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    tokens = tokenizer.tokens_beyond(vocab_size)
    if not tokens:
        return ()
    named = ", ".join(map(repr, tokens[:_MAX_NAMED])) + (", …" if len(tokens) > _MAX_NAMED else "")
    number = "1 token" if len(tokens) == 1 else f"{len(tokens)} tokens"
    return (f"the tokenizer gives {number} beyond vocab_size={vocab_size} ({named}); texts with them are refused",)
