"""Directories that sentence-transformers has saved, against what it makes of the same texts itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)
from torch import nn
from transformers import BertTokenizerFast

from tests.sentence_checkpoints import TEXTS, embed_texts, make_transformer, save_modules, write_json

TOLERANCE = 1e-5
SIZE = 32
Modules = Callable[[], list[nn.Module]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_transformer("bert", tmp_path_factory.mktemp("bert"), kind="base")


def assert_same(directory: Path, texts: list[str] = TEXTS, prompt: str | None = None, **choices: Any) -> torch.Tensor:
    model = SentenceTransformer(str(directory), device="cpu")
    if (
        "qwen2" in (text := (directory / "config.json").read_text()) or "gemma3" in text
    ):  # their tokenizers know no words
        names = ["input_ids", "attention_mask"]
        model[0].processor = BertTokenizerFast.from_pretrained(directory, model_input_names=names)
    expected = torch.tensor(model.encode(texts, prompt=prompt))
    actual = embed_texts(directory, texts, prompt, **choices)
    assert expected[0].sub(expected[1]).abs().max() > 0.01  # texts are told apart
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE
    return actual


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(lambda: [Pooling(SIZE, "mean"), Normalize(), Dense(SIZE, 8)], id="dense-after-normalize"),
        pytest.param(lambda: [Pooling(SIZE, "mean"), Dense(SIZE, 8), Normalize()], id="normalize-last"),
        pytest.param(
            lambda: [Pooling(SIZE, "cls"), Dropout(0.5), Dense(SIZE, 40, activation_function=nn.ReLU())], id="relu"
        ),
        pytest.param(
            lambda: [Pooling(SIZE, "max"), Dense(SIZE, 8, activation_function=nn.GELU(), bias=False)], id="gelu"
        ),
        pytest.param(lambda: [Pooling(SIZE, "mean_sqrt_len_tokens"), LayerNorm(SIZE)], id="layer-norm"),
        pytest.param(lambda: [Pooling(SIZE, "weightedmean"), Dense(SIZE, 8, activation_function=None)], id="identity"),
        pytest.param(lambda: [Pooling(SIZE, ("cls", "max", "mean", "lasttoken")), Dense(4 * SIZE, 6)], id="joined"),
        pytest.param(lambda: [Pooling(SIZE, ("weightedmean", "cls"))], id="joined-in-its-order"),
        pytest.param(
            lambda: [Dense(SIZE, 12, module_input_name="token_embeddings"), Pooling(12, "max")], id="dense-of-tokens"
        ),
        pytest.param(lambda: [Normalize("token_embeddings"), Pooling(SIZE, "mean")], id="normal-tokens"),
        pytest.param(lambda: [Normalize(), Pooling(SIZE, "mean")], id="normalize-of-nothing"),
        pytest.param(
            lambda: [Pooling(SIZE), Dense(SIZE, 9, use_residual=True), Dense(9, 9, use_residual=True)], id="residual"
        ),
        pytest.param(
            lambda: [Pooling(SIZE), Normalize(), Normalize(), Dense(SIZE, 4), Dense(4, SIZE), Normalize()], id="many"
        ),
    ],
)
def test_modules_are_run_in_their_order(modules: Modules, bert: Path, tmp_path: Path) -> None:
    assert_same(save_modules(tmp_path, [Transformer(str(bert)), *modules()]))


@pytest.mark.parametrize(
    "old",
    [
        {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_lasttoken": True, "pooling_mode_weightedmean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {},
    ],
)
def test_pooling_of_older_files_is_read(old: dict[str, bool], bert: Path, tmp_path: Path) -> None:
    directory = save_modules(tmp_path, [Transformer(str(bert)), Pooling(SIZE)])
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": SIZE, **old})
    assert_same(directory)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_a_prompt_may_be_left_out_of_the_pooling(mode: str, bert: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(bert)), Pooling(SIZE, mode, include_prompt=False)]
    directory = save_modules(tmp_path, modules, prompts={"query": "query : the ", "none": ""})
    with_prompt = assert_same(directory, prompt="query : the ")
    without = assert_same(directory, prompt="")
    assert (with_prompt - without).abs().max() > 0.01


def test_vectors_are_cut_as_the_files_say(bert: Path, tmp_path: Path) -> None:
    directory = save_modules(tmp_path, [Transformer(str(bert)), Pooling(SIZE), Normalize()], truncate_dim=5)
    assert assert_same(directory).shape == (len(TEXTS), 5)


@pytest.mark.parametrize("place", ["root", "0_Transformer"])
@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_options_of_the_transformer_are_read_where_they_stand(
    place: str, name: str, bert: Path, tmp_path: Path
) -> None:
    directory = save_modules(tmp_path, [Transformer(str(bert)), Pooling(SIZE)])
    where = directory
    (directory / "sentence_bert_config.json").unlink()
    if place != "root":
        where = directory / place
        where.mkdir()
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (directory / file).rename(where / file)
        modules = json.loads((directory / "modules.json").read_text())
        modules[0]["path"] = place
        write_json(directory / "modules.json", modules)
        write_json(directory / "config.json", {"__version__": "0.2.0"})
    write_json(where / name, {"max_seq_length": 5, "do_lower_case": True})
    actual = assert_same(directory, ["Dog ran far and slept", "the cat sat on a mat", "dog ran far !"])
    assert (actual[0] - actual[2]).abs().max() <= TOLERANCE  # cut after [CLS] dog ran far [SEP]


@pytest.mark.parametrize("limit", [6, 10**30])
def test_the_tokenizers_limit_counts_where_no_other_is(limit: int, bert: Path, tmp_path: Path) -> None:
    directory = save_modules(tmp_path, [Transformer(str(bert)), Pooling(SIZE)])
    config = json.loads((directory / "tokenizer_config.json").read_text())
    write_json(directory / "tokenizer_config.json", {**config, "model_max_length": limit})
    assert_same(directory, [" ".join(["the cat sat on a mat"] * 9), "dog"])


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "deberta-v2"])
def test_a_directory_of_another_head_embeds(name: str, tmp_path: Path) -> None:
    assert_same(make_transformer(name, tmp_path, kind="masked"))


def test_a_decoder_may_attend_both_ways_by_a_name_of_its_own(tmp_path: Path) -> None:
    directory = make_transformer("gemma3_text", tmp_path, kind="generator", use_bidirectional_attention=True)
    assert_same(save_modules(tmp_path / "m", [Transformer(str(directory)), Pooling(SIZE), Dense(SIZE, 8), Normalize()]))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("changes", [{}, {"is_causal": False}], ids=["causal", "both ways"])
@pytest.mark.parametrize("kind", ["base", "generator"])
def test_a_decoder_embeds(name: str, changes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    assert_same(make_transformer(name, tmp_path, kind=kind, **changes))
