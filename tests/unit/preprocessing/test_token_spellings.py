"""What tokens write, in vocabularies of every kind."""

import pytest
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models

from serve_app.errors import ConfigError
from serve_app.preprocessing.token_spellings import check_spellings, token_spellings
from serve_app.preprocessing.token_table import TokenTable
from tests.fakes import byte_fallback_tokenizer, byte_level_tokenizer


def word_piece_tokenizer() -> Tokenizer:
    pieces = ["[UNK]", "[SEP]", "un", "##able", "##", "a", ".", "{", "}", '"', ":", "##1"]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken("[SEP]", special=True)])
    return tokenizer


def spelled(core: tokenizers.Tokenizer) -> dict[str, bytes]:
    num_tokens = core.get_vocab_size() + 2
    spellings = token_spellings(core, TokenTable(core), num_tokens)
    assert spellings[-2:] == [b"", b""]
    return {core.id_to_token(token_id) or "": spelling for token_id, spelling in enumerate(spellings)}


@pytest.mark.parametrize("core", [byte_level_tokenizer(), byte_fallback_tokenizer(), word_piece_tokenizer()])
def test_spellings_put_together_are_the_text_of_the_tokens(core: tokenizers.Tokenizer) -> None:
    table = TokenTable(core)
    check_spellings(core, table)
    spellings = token_spellings(core, table, core.get_vocab_size())
    plain = [one for one in range(core.get_vocab_size()) if one not in table.special_token_ids]
    plain = [one for one in plain if spellings[one].isascii() and spellings[one]]
    first, *rest = sorted(plain, key=lambda one: not spellings[one].strip().isalnum())
    whole = core.decode([first, *rest], skip_special_tokens=False)
    assert whole == core.decode([first]) + b"".join(spellings[one] for one in rest).decode()


def test_each_kind_spells_its_own_way() -> None:
    assert spelled(byte_level_tokenizer())["Ġ"] == b" "
    in_bytes = spelled(byte_fallback_tokenizer())
    assert (in_bytes["\u2581the"], in_bytes["ing"], in_bytes["<0xC3>"], in_bytes["é"]) == (
        *(b" the", b"ing", b"\xc3"),
        "é".encode(),
    )
    pieces = spelled(word_piece_tokenizer())
    assert (pieces["un"], pieces["##able"], pieces["."], pieces["##1"]) == (b" un", b"able", b".", b"1")


def test_a_decoder_that_changes_tokens_by_their_place_is_refused() -> None:
    core = Tokenizer(models.BPE(vocab={"a</w>": 0, "b</w>": 1, "c": 2, "d": 3}, merges=[]))
    core.decoder = decoders.BPEDecoder()
    with pytest.raises(ConfigError, match="held to a grammar"):
        check_spellings(core, TokenTable(core))
