"""Tokens are those of transformers' AutoTokenizer on the same directory, whatever its files say."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from serve_app.preprocessing.tokenizer import Tokenizer
from tests.fakes import byte_fallback_tokenizer, byte_level_tokenizer

TEXTS = [
    "The Café in Zürich, don't!",
    " two  spaces<s>after</s> that ",
    "<|im_start|>user\nhi<|im_end|>\n<tool> <mask>x [MASK] [SEP]",
    "ÀB 東京 ひどい",
    "",
]
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
CHATML = {
    "299": {"content": "<|im_start|>", **FLAGS},
    "300": {"content": "<|im_end|>", **FLAGS},
    "301": {"content": "<tool>", **FLAGS, "special": False, "lstrip": True},
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def word_piece(*, is_cased: bool = False, has_ends: bool = True, has_added: bool = True) -> tokenizers.Tokenizer:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*map(chr, range(33, 127)), *"éüàÀÉ東京ひどい"]
    vocab = [*specials, *letters, *(f"##{one}" for one in letters), "the", "The", "cafe", "café", "Café"]
    core = tokenizers.Tokenizer(
        models.WordPiece({one: i for i, one in enumerate(dict.fromkeys(vocab))}, unk_token="[UNK]")
    )
    core.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    if has_added:
        core.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in specials])
    if has_ends:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return core


def unigram() -> tokenizers.Tokenizer:
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "\u2581",
        *map(chr, range(33, 127)),
        "\u2581the",
        "\u2581two",
        "é",
        "<mask>",
    ]
    core = tokenizers.Tokenizer(models.Unigram([(one, -float(i % 7) - 1) for i, one in enumerate(pieces)], unk_id=3))
    core.normalizer = normalizers.Sequence([normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    return core


def llama() -> tokenizers.Tokenizer:
    core = byte_fallback_tokenizer()
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.pre_tokenizer = None
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


def bare() -> tokenizers.Tokenizer:
    core = byte_level_tokenizer()
    core.post_processor = None
    return core


Files = dict[str, dict[str, Any]]
BERT = {"config": {"model_type": "bert"}}
LOWERING: list[dict[str, bool]] = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
]
CASES: list[tuple[Callable[[], tokenizers.Tokenizer], Files]] = [
    (byte_level_tokenizer, {"tokenizer_config": {**FAST, "added_tokens_decoder": CHATML, "eos_token": "<|im_end|>"}}),
    (byte_level_tokenizer, {"tokenizer_config": {**FAST, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}}),
    (
        byte_level_tokenizer,
        {"tokenizer_config": {**FAST, "added_tokens_decoder": CHATML, "extra_special_tokens": ["<tool>", "<mask>"]}},
    ),
    (byte_level_tokenizer, {"tokenizer_config": {**FAST, "extra_special_tokens": {"image_token": "<tool>"}}}),
    (byte_level_tokenizer, {"tokenizer_config": {**FAST, "image_token": "<tool>", "pad_token": "[MASK]"}}),
    (
        byte_level_tokenizer,
        {
            "tokenizer_config": {**FAST, "eos_token": "</s>"},
            "added_tokens": {"<tool>": 300, "<|im_end|>": 299},
            "special_tokens_map": {"eos_token": {"content": "<|im_end|>", **FLAGS}},
        },
    ),
    (byte_level_tokenizer, {"special_tokens_map": {"additional_special_tokens": ["<tool>"], "eos_token": "</s>"}}),
    (byte_level_tokenizer, {"tokenizer_config": {**FAST, "split_special_tokens": True}}),
    (byte_level_tokenizer, {"tokenizer_config": {**FAST, "add_bos_token": False, "add_eos_token": True}}),
    (bare, {"tokenizer_config": {**FAST, "bos_token": "<s>", "add_bos_token": True}}),
    (bare, {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "unk_token": "</s>"}}),
    (byte_level_tokenizer, {"tokenizer_config": {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}}),
    (byte_level_tokenizer, {"config": {"model_type": "roberta"}}),
    (word_piece, {"config": {"model_type": "mpnet"}}),
    (word_piece, {"tokenizer_config": {"tokenizer_class": "MPNetTokenizer", "do_lower_case": False}}),
    (unigram, {"config": {"model_type": "xlm-roberta"}}),
    (unigram, {"tokenizer_config": {"tokenizer_class": "XLMRobertaTokenizerFast", "add_prefix_space": False}}),
    (llama, {"tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast"}, "config": {"model_type": "llama"}}),
    (llama, {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": True}}),
    (llama, {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "legacy": False}}),
    (llama, {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}, "config": {"model_type": "mistral"}}),
    (llama, {"tokenizer_config": FAST}),
    (
        byte_level_tokenizer,
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}, "config": {"model_type": "phi3"}},
    ),
    (word_piece, BERT),
    (partial(word_piece, has_ends=False), BERT),
    (partial(word_piece, is_cased=True, has_ends=False, has_added=False), BERT),
    (partial(word_piece, has_ends=False), {**BERT, "tokenizer_config": FAST}),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_tokens_are_those_of_transformers(number: int, tmp_path: Path) -> None:
    compare(*CASES[number], tmp_path)


@pytest.mark.parametrize("name", ["BertTokenizer", "DistilBertTokenizerFast"])
@pytest.mark.parametrize("is_cased", [False, True])
@pytest.mark.parametrize("settings", LOWERING)
def test_letters_are_made_small_as_the_class_is_told(
    name: str, is_cased: bool, settings: dict[str, bool], tmp_path: Path
) -> None:
    files: Files = {
        "tokenizer_config": {"tokenizer_class": name, **settings},
        "config": {"model_type": "distilbert"},
    }
    compare(partial(word_piece, is_cased=is_cased), files, tmp_path)


def compare(make: Callable[[], tokenizers.Tokenizer], files: Files, tmp_path: Path) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    for name, values in {"config": {"model_type": "llama"}, **files}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    expected, tokenizer = AutoTokenizer.from_pretrained(str(tmp_path)), Tokenizer.load(tmp_path)
    assert tokenizer.num_tokens == len(expected)
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == expected.encode(text, add_special_tokens=False)
        pair = expected(text, TEXTS[0], return_token_type_ids=True)
        assert tokenizer.encode_entry(text).token_ids == expected(text)["input_ids"]
        entry = tokenizer.encode_entry(text, TEXTS[0])
        assert (entry.token_ids, entry.type_ids) == (pair["input_ids"], pair["token_type_ids"])
    for name, token in expected.special_tokens_map.items():
        if isinstance(token, str):
            assert tokenizer.special_tokens[name] == token
    assert tokenizer.special_tokens.keys() == {
        name
        for name, token in expected.special_tokens_map.items()
        if isinstance(token, str) and name in tokenizer.special_tokens
    }
    assert tokenizer.table.special_token_ids == {
        token_id for token_id, token in expected.added_tokens_decoder.items() if token.special
    }


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokenizer_class": "AlbertTokenizer", "keep_accents": True}, ["keep_accents=True of AlbertTokenizer"]),
        ({"tokenizer_class": "BertTokenizer", "do_lower_case": False}, []),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}, []),
        (
            {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False},
            ["add_prefix_space=False of Qwen2Tokenizer"],
        ),
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, ["auto_map (code of its own, which is not run)"]),
        ({"auto_map": {"AutoModel": "a.B"}}, []),
        ({"truncation_side": "left"}, ["truncation_side='left' of its class"]),
        (
            {"added_tokens_decoder": {"900": {"content": "<far>", **FLAGS}}},
            [f"'<far>' as id 900 (it is {word_piece().get_vocab_size()})"],
        ),
    ],
)
def test_settings_that_change_tokens_and_are_not_followed_are_named(
    settings: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer.load(tmp_path).not_followed == named
