"""The shipped demo model: its generator, its files and its card."""

import json
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

DEMO = Path(__file__).parents[3] / "examples" / "demo_model"
MODEL = DEMO / "model"
TASK_NAMES = ("date", "spell", "sort", "reverse", "add")
MULTI_BYTE_TEXTS = ("Grüße, naïve café", "日本語のテキスト", "😀👩‍👩‍👧 ok", "a\n\tb  c\u0000\r\n", "", "العربية 12345")


def load(name: str) -> Iterator[ModuleType]:
    """Import one of the demo's scripts for a while; they are no package."""
    before = set(sys.modules)
    sys.path.insert(0, str(DEMO))
    try:
        yield __import__(name)
    finally:
        sys.path.remove(str(DEMO))
        for added in {"tasks", "text", "card", "evaluate"} & (set(sys.modules) - before):
            del sys.modules[added]


@pytest.fixture
def tasks() -> Iterator[ModuleType]:
    """The generator."""
    yield from load("tasks")


@pytest.fixture
def text() -> Iterator[ModuleType]:
    """Tokenizer and training forms."""
    yield from load("text")


@pytest.fixture
def card() -> Iterator[ModuleType]:
    """The card's score table."""
    yield from load("card")


@pytest.fixture
def evaluate() -> Iterator[ModuleType]:
    """The measuring script."""
    yield from load("evaluate")


@pytest.fixture
def tokenizer() -> Tokenizer:
    """The shipped tokenizer."""
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def read_json(name: str) -> Any:
    """A JSON file of the shipped model."""
    return json.loads((MODEL / name).read_text())


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_seed_draws_the_same_held_out_examples_again(tasks: ModuleType, task: str) -> None:
    assert tasks.heldout(task, 20, seed=3) == tasks.heldout(task, 20, seed=3)
    assert tasks.heldout(task, 20, seed=3) != tasks.heldout(task, 20, seed=4)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_has_500_distinct_held_out_prompts(tasks: ModuleType, task: str) -> None:
    prompts = {example.prompt for example in tasks.heldout(task, 500, seed=1)}
    assert len(prompts) == 500
    assert all(tasks.is_held_out(prompt) for prompt in prompts)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_training_never_draws_a_held_out_prompt(tasks: ModuleType, task: str) -> None:
    rng = Random(5)
    assert not any(tasks.is_held_out(tasks.sample_training(task, rng).prompt) for _ in range(500))


def test_one_prompt_in_sixteen_is_held_out(tasks: ModuleType) -> None:
    num_held_out = sum(tasks.is_held_out(f"add {number} 1") for number in range(16_000))
    assert 900 < num_held_out < 1100


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (706, "seven hundred six"),
        (1000, "one thousand"),
        (20_011, "twenty thousand eleven"),
        (54_321, "fifty-four thousand three hundred twenty-one"),
        (99_999, "ninety-nine thousand nine hundred ninety-nine"),
    ],
)
def test_numbers_are_spelled_as_in_american_english(tasks: ModuleType, number: int, words: str) -> None:
    assert tasks.spell_number(number) == words


@pytest.mark.parametrize(
    ("day", "suffix"), [(1, "st"), (2, "nd"), (3, "rd"), (4, "th"), (11, "th"), (13, "th"), (22, "nd"), (31, "st")]
)
def test_days_get_their_ordinal_suffix(tasks: ModuleType, day: int, suffix: str) -> None:
    assert tasks.ordinal_suffix(day) == suffix


@pytest.mark.parametrize(("year", "days"), [(1900, 28), (2000, 29), (2023, 28), (2024, 29)])
def test_february_follows_the_gregorian_calendar(tasks: ModuleType, year: int, days: int) -> None:
    assert tasks.days_in_month(year, 2) == days


def test_answers_follow_from_their_prompts(tasks: ModuleType) -> None:
    rng = Random(0)
    for _ in range(300):
        _, left, right = tasks.sample_add(rng).prompt.split()
        assert max(int(left), int(right)) <= tasks.MAX_ADDEND
    for task, check in (("add", check_add), ("sort", check_sort), ("reverse", check_reverse)):
        for prompt, answer in tasks.heldout(task, 100, seed=0):
            check(prompt.split()[1:], answer)


def check_add(numbers: list[str], answer: str) -> None:
    assert int(answer) == sum(int(number) for number in numbers)


def check_sort(words: list[str], answer: str) -> None:
    assert 3 <= len(words) <= 5
    assert tuple(answer.split()) == min(permutations(words))


def check_reverse(words: list[str], answer: str) -> None:
    assert answer == "".join(words[0][-1 - index] for index in range(len(words[0])))


@pytest.mark.parametrize("content", MULTI_BYTE_TEXTS)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, content: str) -> None:
    ids = tokenizer.encode(content, add_special_tokens=False).ids
    assert ids == list(content.encode())
    assert tokenizer.decode(ids, skip_special_tokens=False) == content


def test_a_decode_stream_waits_for_whole_characters(tokenizer: Tokenizer) -> None:
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(tokenizer, token) for token in "é😀".encode()]
    assert [piece for piece in pieces if piece] == ["é", "😀"]


def test_every_digit_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2038", add_special_tokens=False).tokens == ["2", "0", "3", "8"]
    assert tokenizer.get_vocab_size() <= 512


def test_a_plain_prompt_starts_with_bos_once(tokenizer: Tokenizer) -> None:
    bos = read_json("config.json")["bos_token_id"]
    assert tokenizer.encode("add 1 2 =").ids.count(bos) == 1
    assert tokenizer.encode("add 1 2 =").ids[0] == bos


def test_the_shipped_tokenizer_is_the_one_that_training_builds(text: ModuleType, tokenizer: Tokenizer) -> None:
    assert text.build_tokenizer().to_str() == tokenizer.to_str()
    assert (MODEL / "chat_template.jinja").read_text() == text.CHAT_TEMPLATE


def test_the_chat_template_renders_what_training_saw(text: ModuleType, tasks: ModuleType) -> None:
    turns = [tasks.Example("add 1 2", "3"), tasks.Example("reverse abc", "cba")]
    messages = [{"role": "system", "content": "Be exact."}]
    for prompt, answer in turns:
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    seen = "".join(segment.text for segment in text.chat_segments(turns, "Be exact."))
    rendered = jinja2.Template(text.CHAT_TEMPLATE).render(messages=messages, bos_token=text.BOS)
    assert rendered == seen
    asked = jinja2.Template(text.CHAT_TEMPLATE).render(
        messages=messages[:-1], bos_token=text.BOS, add_generation_prompt=True
    )
    assert seen == f"{asked}cba{text.END}"


def test_only_answers_and_their_end_are_learned(text: ModuleType, tasks: ModuleType) -> None:
    tokenizer = text.build_tokenizer()
    row = text.tokenize(tokenizer, text.completion_segments(tasks.Example("add 1 2", "3")))
    learned = [token for token, is_target in zip(row.ids, row.is_target, strict=True) if is_target]
    assert tokenizer.decode(learned, skip_special_tokens=False) == f"3{text.END}"


def test_the_model_splits_two_by_two_and_four_by_one() -> None:
    config = read_json("config.json")
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (8, 8, 4)


def test_the_vocabulary_is_small_and_splits_evenly() -> None:
    config = read_json("config.json")
    assert config["dtype"] == "bfloat16"
    assert config["vocab_size"] % 8 == 0
    assert config["vocab_size"] <= 512


def test_generation_ends_at_the_end_token(tokenizer: Tokenizer) -> None:
    assert read_json("generation_config.json")["eos_token_id"] == [tokenizer.token_to_id("<|end|>")]
    assert read_json("config.json")["eos_token_id"] == tokenizer.token_to_id("<|end|>")


def test_the_weights_fit_in_eight_megabytes() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000


def test_no_path_of_a_machine_is_in_the_model_files() -> None:
    for path in MODEL.glob("*.json"):
        assert "_name_or_path" not in path.read_text()
        assert "/home/" not in path.read_text()


def test_every_task_scores_at_least_95_percent() -> None:
    records = json.loads((DEMO / "scores.json").read_text())
    for record in records.values():
        assert {score["task"] for score in record["scores"]} == set(TASK_NAMES)
        for score in record["scores"]:
            assert score["num_inputs"] >= 500
            assert score["num_exact"] >= 0.95 * score["num_inputs"]


def test_the_card_shows_the_measured_scores(card: ModuleType) -> None:
    records = json.loads((DEMO / "scores.json").read_text())
    assert card.score_table(records) in (DEMO / "README.md").read_text()


def test_a_new_score_table_takes_the_old_ones_place(card: ModuleType) -> None:
    old = f"a\n{card.TABLE_START}old\n{card.TABLE_END}b\n"
    assert card.replace_table(old, "new\n") == f"a\n{card.TABLE_START}new\n{card.TABLE_END}b\n"


def test_an_answer_counts_only_if_it_is_exact(evaluate: ModuleType, tasks: ModuleType) -> None:
    examples = [tasks.Example("add 1 2", "3"), tasks.Example("add 2 2", "4")]
    score = evaluate.score_answers("add", "chat", examples, ["3", " 4"])
    assert (score.num_exact, score.num_inputs, score.exact_percent) == (1, 2, 50.0)
    assert score.first_miss == "add 2 2 -> ' 4', not '4'"
