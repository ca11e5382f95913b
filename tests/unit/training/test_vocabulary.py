"""What tokens a trained vocabulary makes of texts, with blanks between words and without."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from serve_app.training.vocabulary import make_tokenizer, save_tokenizer, unknown_share

# A character with what marks it; words of other scripts stay whole. Checked against Unicode's scripts by hand.
TOKENS = [
    ("今天天气很好。", ["今", "天", "天", "气", "很", "好", "。"]),
    ("ひどいコーヒー", ["ひ", "ど", "い", "コ", "ー", "ヒ", "ー"]),
    ("ﾋﾄﾞｲ", ["ヒ", "ド", "イ"]),  # half-width: one letter in two characters
    ("좋은 아침", ["좋", "은", "아", "침"]),
    ("ที่นี่", ["ที่", "นี่"]),
    ("ກິນ ភាសា", ["ກິ", "ນ", "ភា", "សា"]),
    ("Good😀day", ["good", "😀", "day"]),
    ("買iPhone15嗎", ["買", "iphone15", "嗎"]),
    ("Злой край, año ÉTÉ", ["злой", "край", ",", "año", "été"]),
    ("e\u0301te\u0301", ["été"]),  # one spelling for what looks the same
    ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
    ("It's 12.50!", ["it", "'", "s", "12", ".", "50", "!"]),
]


@pytest.mark.parametrize(("text", "tokens"), TOKENS)
def test_words_and_characters_are_tokens(text: str, tokens: list[str]) -> None:
    tokenizer = make_tokenizer([text], min_frequency=1, max_size=100)
    assert tokenizer.encode(text).tokens == tokens


def test_the_written_tokenizer_is_the_one_that_was_trained(tmp_path: Path) -> None:
    texts = [text for text, _tokens in TOKENS]
    tokenizer = make_tokenizer(texts, min_frequency=1, max_size=1000)
    save_tokenizer(tokenizer, tmp_path)
    served = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [served.encode(text).ids for text in texts] == [tokenizer.encode(text).ids for text in texts]


def test_the_share_of_unknown_tokens_counts_tokens() -> None:
    tokenizer = make_tokenizer(["红绿", "红绿"], min_frequency=2, max_size=100)
    assert unknown_share(tokenizer, ["红绿蓝", "红"]) == 0.25
    assert unknown_share(tokenizer, [""]) == 0.0
