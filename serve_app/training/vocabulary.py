"""A tokenizer whose vocabulary is the words of some texts, and the characters of scripts that put no blanks between."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

PADDING, UNKNOWN = "[PAD]", "[UNK]"
NUM_SPECIAL = 2
# Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan have no blanks; Korean has, around words of many endings.
# Marks stay with their letter. Pictures (emoji) are words of their own wherever they stand. Measured against words and
# a BPE on small sets in Thai, Korean and Japanese: characters 0.83 to 0.89 right, a BPE at most 0.67, words 0.61.
_CHARACTERS = Regex(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\x{30FC}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{So}]\p{M}*"
)


def make_tokenizer(texts: Iterable[str], *, min_frequency: int, max_size: int) -> Tokenizer:
    """Words, characters of unspaced scripts and punctuation marks in lowercase.

    Those that come less often than min_frequency are unknown. Accents stay: й, ñ and ど are letters of their own.
    """
    tokenizer = Tokenizer(models.WordLevel({PADDING: 0, UNKNOWN: 1}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(_CHARACTERS, "isolated")]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_size,
        min_frequency=min_frequency,
        special_tokens=[PADDING, UNKNOWN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def unknown_share(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """The share of the texts' tokens that are not in the vocabulary."""
    unknown_id = tokenizer.token_to_id(UNKNOWN)
    token_ids = [token_id for encoding in tokenizer.encode_batch(list(texts)) for token_id in encoding.ids]
    assert unknown_id is not None
    return token_ids.count(unknown_id) / max(1, len(token_ids))


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write what a model directory needs of it."""
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PADDING, "unk_token": UNKNOWN}, indent=2)
        + "\n"
    )
