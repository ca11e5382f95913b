"""What ends an answer, and what requests get that do not say: from all files of a model's directory."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from serve_app.errors import ConfigError
from serve_app.planning.text_facts import AnswerFacts, read_answer_facts
from serve_app.types.generation import SamplingDefaults

VOCAB_SIZE = 64


def facts(directory: Path, *, has_defaults: bool = True, **files: dict[str, Any] | None) -> AnswerFacts:
    """Of a directory with a tokenizer of four special tokens, 60 to 63, and these files."""
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(60)}, unk_token="w0"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, values in files.items():
        if values is not None:
            (directory / f"{name}.json").write_text(json.dumps(values))
    return read_answer_facts(directory, VOCAB_SIZE, has_defaults=has_defaults)


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "ends", "outside"),
    [
        ({"eos_token_id": 61}, {"eos_token_id": 62}, {"eos_token": "<|im_end|>"}, {61, 62, 63}, []),
        ({"eos_token_id": [61, 62]}, {"eos_token_id": 61}, {"eos_token": {"content": "</s>"}}, {61, 62}, []),
        ({}, {"eos_token_id": None}, {}, set(), []),
        (None, {}, {"eos_token": "</s>"}, {61}, []),
        ({"eos_token_id": 61}, {"eos_token_id": -1}, {"eos_token": "gone"}, {61}, ["config.json: eos_token_id=-1"]),
        ({"eos_token_id": [61, 64]}, {}, {}, {61}, ["generation_config.json: eos_token_id=64"]),
    ],
)
def test_the_end_tokens_of_all_files_count(
    tmp_path: Path,
    generation: dict[str, Any] | None,
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    ends: set[int],
    outside: list[str],
) -> None:
    found = facts(tmp_path, generation_config=generation, config=config, tokenizer_config=tokenizer)
    assert found.end_token_ids == ends
    told = [one for one in found.warnings if "eos_token_id" in one]
    assert told == [f"{one} is not a token of the model" for one in outside]


@pytest.mark.parametrize(
    ("model_type", "generation", "config", "ends"),
    [
        ("zaya", None, {}, set()),  # 106 is not below 64
        ("exaone_moe", None, {}, set()),  # 53 is a plain word
        ("gpt2", None, {}, set()),
        ("llama", None, {}, {2}),
        ("llama", {}, {}, set()),
        ("llama", None, {"eos_token_id": None}, set()),
        ("llama", None, {"eos_token_id": 61}, {61}),
    ],
)
def test_the_default_of_a_class_counts_where_no_file_says_and_it_is_a_special_token(
    tmp_path: Path, model_type: str, generation: dict[str, Any] | None, config: dict[str, Any], ends: set[int]
) -> None:
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(2)} | {"<pad>": 2}, unk_token="w0"))
    tokenizer.add_special_tokens(["<pad>", *(f"w{index}" for index in range(3, 50))])
    as_it_is = {"tokenizer_class": "PreTrainedTokenizerFast"}
    values = {"model_type": model_type, **config}
    plain = facts(tmp_path, generation_config=generation, config=values, tokenizer_config=as_it_is)
    assert plain.end_token_ids == ends - {2}  # 2 is a word there
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_answer_facts(tmp_path, VOCAB_SIZE, has_defaults=True).end_token_ids == ends


def test_an_end_token_that_is_no_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eos_token_id='</s>' is neither a token id nor a list of them"):
        facts(tmp_path, config={"eos_token_id": "</s>"})


def test_sampling_settings_are_taken_as_vllm_takes_them(tmp_path: Path) -> None:
    values = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "max_new_tokens": 9}
    found = facts(tmp_path, generation_config={**values, "repetition_penalty": 1.05, "max_length": 20})
    assert found.sampling == SamplingDefaults(0.6, 20, 0.95, 0.1, 1.05, 9)
    assert found.lines[1] == (
        "requests that do not say get temperature 0.6, top_k 20, top_p 0.95, min_p 0.1, repetition_penalty 1.05, "
        "max_tokens 9, as generation_config.json has them"
    )
    assert found.warnings == ()
    assert facts(tmp_path, has_defaults=False).sampling == SamplingDefaults()


def test_settings_of_sampling_do_not_count_where_the_model_is_greedy(tmp_path: Path) -> None:
    values = {"do_sample": False, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "num_beams": 1}
    found = facts(tmp_path, generation_config={**values, "typical_p": 1.0, "bad_words_ids": None})
    assert found.sampling == SamplingDefaults(repetition_penalty=1.05)
    assert found.warnings == ("generation_config.json asks for do_sample=False, which is not done here",)


@pytest.mark.parametrize(
    "wrong", [{"top_p": 1.5}, {"temperature": -1}, {"top_k": "5"}, {"min_p": True}, {"repetition_penalty": 0}]
)
def test_a_setting_outside_its_range_is_refused_by_name_and_can_be_left_out(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"{name}=.*; correct it, or set generation_config: off"):
        facts(tmp_path, generation_config=wrong)
    assert facts(tmp_path, has_defaults=False).sampling == SamplingDefaults()


def test_formats_of_answers_are_told_and_refused_before_anything_runs(tmp_path: Path) -> None:
    template = {"chat_template": "{% if tools %}<tool_call>{% endif %}</think>"}
    found = facts(tmp_path, tokenizer_config=template)
    assert (found.tool_parser, found.reasoning_parser) == ("hermes", "think")
    assert "calls of tools are read as tool_parser hermes has them" in found.lines
    chosen = {"tool_parser": "json", "reasoning_parser": "off"}
    other = read_answer_facts(tmp_path, VOCAB_SIZE, has_defaults=True, **chosen)
    assert (other.tool_parser, other.reasoning_parser) == ("json", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    with pytest.raises(ConfigError, match="tool_parser=mistral: the model's chat template shows no tools"):
        read_answer_facts(tmp_path, VOCAB_SIZE, has_defaults=True, tool_parser="mistral")
