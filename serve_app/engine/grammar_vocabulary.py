"""A model's vocabulary as the grammar library reads it."""

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLTokenizer, TokenizerWrapper

from serve_app.preprocessing.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class GrammarVocabulary:
    """Tokens by what they write. Made once for a model: a second for each 100,000 tokens."""

    tokens: LLTokenizer
    special_token_ids: frozenset[int]  # that write nothing; no grammar allows them but at its end

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> "GrammarVocabulary":
        """That of a model with so many logits. Raises ConfigError where tokens do not write the same everywhere."""
        special = tokenizer.table.special_token_ids | set(eos_token_ids)
        spellings = tokenizer.spellings(vocab_size)
        unwritten = {token_id for token_id, spelling in enumerate(spellings) if not spelling}
        spelled = _Spelled(spellings, sorted((special | unwritten) & set(range(vocab_size))), eos_token_ids[0])
        tokens = LLTokenizer(TokenizerWrapper(spelled), n_vocab=vocab_size, eos_token=list(eos_token_ids))
        return cls(tokens, frozenset(special))


class _Spelled:
    """What TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int) -> None:
        self.tokens = [spelling or b"<%d>" % token_id for token_id, spelling in enumerate(tokens)]
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id
        self._ids = {tokens[token_id]: token_id for token_id in range(len(tokens) - 1, -1, -1)}

    def __call__(self, text: bytes) -> list[int]:
        """The bytes one by one: grammars here force no tokens, so that the model chooses how a text is cut."""
        singles = [bytes([value]) for value in text]
        return [self._ids[single] for single in singles if single in self._ids]
