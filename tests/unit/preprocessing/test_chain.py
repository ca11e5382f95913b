"""Steps alone and in a row: what they make, and which rows are refused before anything runs."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError, InternalError, RequestError, UnprocessableError
from serve_app.preprocessing.arrays import to_tensor_data
from serve_app.preprocessing.chain import ChainModel, build_chains, check_chains, kind_of, make_chain
from serve_app.preprocessing.chain_host import ChainHost, ChainSpec
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.chains import ChainOutcome, ChainRequest, ChainValue
from tests.fakes import save_model_dir


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


def before(*given: Any, task: str = "embed") -> ModelConfig:
    return ModelConfig.model_validate({"name": "m", "source": "s", "task": task, "preprocessing": list(given)})


def run(directory: Path, text: str, *given: Any) -> ChainOutcome:
    """What a chain makes of a text; it may end in texts."""
    chain = make_chain(before(*given).preprocessing, ChainModel(directory))
    return chain.run(ChainValue(text=text), has_trace=True)


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("normalize_unicode", "ﬁn \u0041\u030a", "fin Å"),
        ({"normalize_unicode": {"form": "NFC"}}, "ﬁn", "ﬁn"),
        ("lowercase", "ÄBC", "äbc"),
        ("collapse_whitespace", " a\t\n b\u00a0c ", "a b c"),
        ("strip_html", "<p>a&amp;b<script>x()</script></p><b>c</b>", " a&b c"),
        ("strip_html", "<!DOCTYPE html><br/>a", " a"),
        ("strip_html", "1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("strip_html", "<!-- gone -->kept<style>p{}</style>", "kept"),
        ("strip_html", f"&#65;&#{'0' * 5000}66;&#{'9' * 5000};&#x{'9' * 5000};&#0", "AB\ufffd\ufffd\ufffd"),
        ("normalize_unicode", "e\u0301" * 300 + "\u1112\u1161\u11ab" * 300, "é" * 300 + "한" * 300),
        ({"truncate": {"max_chars": 3}}, "abcdef", "abc"),
        ("redact_pii", "mail a@b.de", "mail <EMAIL_1>"),
        ({"redact_pii": {"kinds": ["ip"]}}, "mail a@b.de", "mail a@b.de"),
        ("tests.user_steps:Reverse", "abc", "cba"),
        ({"tests.user_steps:Reverse": {"times": 2}}, "abc", "abc"),
    ],
)
def test_a_text_step_does_what_it_says(directory: Path, step: Any, text: str, expected: str) -> None:
    assert run(directory, text, step).value == ChainValue(text=expected)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith paid 3.50 to J. Doe. He left...", ["Dr. Smith paid 3.50 to J. Doe.", "He left..."]),
        ('"Stop!" she said. He did.', ['"Stop!"', "she said.", "He did."]),
        ("no end\n\nnext part", ["no end", "next part"]),
        ("", []),
        ("...", ["..."]),
    ],
)
def test_sentences_end_at_their_marks(directory: Path, text: str, sentences: list[str]) -> None:
    assert run(directory, text, "split_sentences").value == ChainValue(texts=sentences)


def test_a_chain_runs_in_order_and_shows_every_step(directory: Path) -> None:
    made = run(directory, "Mail A@B.DE!  Now. ", "redact_pii", "lowercase", "split_sentences", "collapse_whitespace")
    assert made.value == ChainValue(texts=["mail <email_1>!", "now."])
    assert [one.step for one in made.trace] == ["redact_pii", "lowercase", "split_sentences", "collapse_whitespace"]
    assert [kind_of(one.value) for one in made.trace] == ["text", "text", "texts", "texts"]
    assert [one.original for one in made.redactions] == ["A@B.DE"]


def test_tokenize_gives_the_models_own_tokens(directory: Path) -> None:
    made = run(directory, "The rain", "tokenize", {"truncate": {"max_tokens": 2}})
    assert made.value.token_ids == Tokenizer.load(directory).encode("The rain")[:2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lowercas"], "preprocessing[0]=lowercas: is not a step; did you mean lowercase?"),
        (["xyz"], "use normalize_unicode, lowercase"),
        (
            ["tokenize", "lowercase"],
            "preprocessing[1]=lowercase takes text, but preprocessing[0]=tokenize gives token_ids",
        ),
        (["split_sentences"], "preprocessing[0]=split_sentences gives texts, but the model takes text or token_ids"),
        (["split_sentences", "tokenize"], "preprocessing[1]=tokenize takes text, but preprocessing[0]"),
        ([{"truncate": {"max_tokens": 3}}], "preprocessing[0]=truncate takes token_ids, but the request gives text"),
        ([{"truncate": {}}], "give either max_chars or max_tokens"),
        ([{"truncate": {"max_chars": 0}}], "0 is not a length"),
        ([{"truncate": {"max_chars": "3"}}], "'3' is not a length"),
        ([{"lowercase": {"locale": "de"}}], "argument locale is not known; it takes none"),
        ([{"normalize_unicode": {"form": "X"}}], "form='X' is not known"),
        ([{"redact_pii": {"kinds": ["names"]}}], "kinds='names' is not known; use email"),
        ([{"tokenize": {"fast": True}}], "takes no arguments; remove fast"),
        (["chat_template"], "preprocessing[0]=chat_template gives prompt, but the model takes text or token_ids"),
        (["softmax"], "preprocessing[0]=softmax takes numbers, but the request gives text"),
        (["redact_pii", "lowercase", "strip_html"], "preprocessing[2]=strip_html would take the placeholders of"),
        (["tests.no_such:Step"], "there is no module tests.no_such"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_before_it_runs(directory: Path, given: list[Any], message: str) -> None:
    problems = check_chains(before(*given), ChainModel(directory))
    assert any(message in problem for problem in problems), problems
    with pytest.raises(ConfigError):
        build_chains(before(*given), ChainModel(directory))


@pytest.mark.parametrize("given", [[], ["lowercase"], ["lowercase", "tokenize"], ["tests.user_steps:Reverse"]])
def test_a_chain_that_fits_is_taken(directory: Path, given: list[Any]) -> None:
    assert check_chains(before(*given), ChainModel(directory)) == []
    build_chains(before(*given), ChainModel(directory))


def test_a_users_exception_is_told_by_its_kind_alone(directory: Path) -> None:
    with pytest.raises(InternalError) as caught:
        run(directory, "a secret word", {"tests.user_steps:Touchy": {"word": "secret"}})
    assert caught.value.message == "step tests.user_steps:Touchy failed: ValueError"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_users_step_that_gives_no_text_is_named(directory: Path) -> None:
    with pytest.raises(InternalError, match=r"tests\.user_steps:Numbers gave int, not a text"):
        run(directory, "abc", "tests.user_steps:Numbers")


def test_a_step_that_makes_too_much_is_stopped(directory: Path) -> None:
    with pytest.raises(UnprocessableError, match="split_sentences"):
        run(directory, "ab. " * 100_001, "split_sentences")


def after(*given: Any, task: str = "classify", **more: Any) -> ModelConfig:
    module = {"architecture": "a.b:C"} if task == "predict" else {}
    return ModelConfig.model_validate(
        {"name": "m", "source": "s", "task": task, "postprocessing": list(given), **module, **more}
    )


def answer(directory: Path, value: ChainValue, *given: Any) -> ChainValue:
    chain = make_chain(after(*given).postprocessing, ChainModel(directory, ["a", "b", "c"]), is_after=True)
    return chain.run(value, has_trace=False).value


LOGITS = ChainValue(numbers=[0.0, math.log(3.0), math.log(6.0)])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["softmax", "label_names"], {"a": 0.1, "b": 0.3, "c": 0.6}),
        (["label_names", {"top_k": {"k": 1}}], {"c": math.log(6)}),
        (["softmax", "label_names", {"top_k": {"k": 2}}], {"c": 0.6, "b": 0.3}),
        (["softmax", "label_names", {"threshold": {"min_score": 0.3}}], {"b": 0.3, "c": 0.6}),
        (["softmax", "label_names", {"threshold": {"min_score": 0.9}}], {}),
        (["sigmoid", "label_names"], {"a": 0.5, "b": 0.75, "c": 6 / 7}),
        (["softmax", {"label_names": {"names": ["x", "y", "z"]}}], {"x": 0.1, "y": 0.3, "z": 0.6}),
    ],
)
def test_the_steps_behind_a_model_make_labels(directory: Path, given: list[Any], expected: dict[str, float]) -> None:
    made = answer(directory, LOGITS, *given)
    assert made.labels is not None
    assert [one.label for one in made.labels] == list(expected)
    assert [one.score for one in made.labels] == pytest.approx(list(expected.values()), abs=1e-6)


def test_labels_that_no_file_names_are_numbered(directory: Path) -> None:
    chain = make_chain(after("label_names").postprocessing, ChainModel(directory), is_after=True)
    labels = chain.run(LOGITS, has_trace=False).value.labels
    assert labels is not None
    assert [one.label for one in labels] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_names_that_are_not_as_many_as_the_numbers_are_an_error(directory: Path) -> None:
    step = {"label_names": {"names": ["x", "y"]}}
    chain = make_chain(after(step).postprocessing, ChainModel(directory), is_after=True)
    with pytest.raises(InternalError, match="label_names has 2 labels, and the model gave 3 numbers"):
        chain.run(LOGITS, has_trace=False)


def test_a_users_class_makes_the_answer(directory: Path) -> None:
    made = answer(directory, LOGITS, "softmax", "label_names", "tests.user_steps:Spread")
    assert json.loads(made.json or "") == pytest.approx({"spread": 0.5, "of": 3})
    made = answer(directory, LOGITS, "tests.user_steps:Spread")
    assert json.loads(made.json or "") == pytest.approx({"spread": math.log(6), "of": 3})
    tensors = {"y": to_tensor_data(np.array([[1.0, 4.0]], np.float32))}
    made = answer(directory, ChainValue(tensors=tensors), "tests.user_steps:Spread")
    assert json.loads(made.json or "") == {"spread": 3.0, "of": 2}


def test_an_answer_that_json_cannot_hold_is_told_by_its_kind(directory: Path) -> None:
    with pytest.raises(InternalError, match=r"tests\.user_steps:Unspeakable gave dict with something in it that JSON"):
        answer(directory, LOGITS, "tests.user_steps:Unspeakable")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["softmax"], "postprocessing[0]=softmax gives numbers, but an answer consists of labels"),
        (["label_names", "softmax"], "postprocessing[1]=softmax takes numbers, but postprocessing[0]=label_names"),
        ([{"top_k": {"k": 1}}], "postprocessing[0]=top_k takes labels, but the model gives numbers"),
        (["label_names", "top_k"], "argument k is missing; write it as `step: {k: ...}`"),
        (["label_names", {"top_k": {"k": 0}}], "k=0 is not a number of labels"),
        (["label_names", {"threshold": {"min_score": "0.5"}}], "min_score='0.5' is not a number"),
        ([{"label_names": {"names": ["x"]}}], "names has 1 labels, and the model 3"),
        ([{"label_names": {"names": ["x", "x", "y"]}}], "names holds a label twice"),
        ([{"label_names": {"known": ["x"]}}], "argument known is not known; it takes names"),
        (["tests.user_steps:Spread", "tests.user_steps:Spread"], "takes text, but postprocessing[0]"),
        (["lowercase"], "postprocessing[0]=lowercase takes text, but the model gives numbers"),
        (["tests.no_such:Step"], "there is no module tests.no_such"),
    ],
)
def test_steps_that_cannot_stand_behind_a_model_are_refused(directory: Path, given: list[Any], message: str) -> None:
    problems = check_chains(after(*given), ChainModel(directory, ["a", "b", "c"]))
    assert any(message in problem for problem in problems), problems


def test_a_module_of_tensors_takes_a_class_behind_it_and_nothing_else(directory: Path) -> None:
    assert check_chains(after("tests.user_steps:Spread", task="predict"), ChainModel(directory)) == []
    (problem, *_) = check_chains(after("softmax", "label_names", task="predict"), ChainModel(directory))
    assert "postprocessing[0]=softmax takes numbers, but the model gives tensors" in problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "embed", "postprocessing": ["softmax"]}, "postprocessing has no effect on task=embed"),
        ({"task": "generate", "postprocessing": ["softmax"]}, "postprocessing has no effect on task=generate"),
        ({"task": "classify", "postprocessing": ["sigmoid"], "is_multi_label": True}, "is_multi_label has no effect"),
    ],
)
def test_settings_that_steps_make_void_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({"name": "m", "source": "s", **changes})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lowercase", "chat_template"], None),
        (["redact_pii"], None),
        (["tokenize"], "preprocessing[0]=tokenize gives token_ids, but the model takes text; end with another step"),
        (["split_sentences"], "gives texts, but the model takes text"),
        (["chat_template", "lowercase"], "preprocessing[1]=lowercase takes text, but preprocessing[0]=chat_template"),
    ],
)
def test_the_steps_before_a_generator_end_in_text(directory: Path, given: list[Any], message: str | None) -> None:
    problems = check_chains(before(*given, task="generate"), ChainModel(directory))
    assert problems == [] if message is None else message in problems[0]


def test_a_chat_template_must_be_there(tmp_path: Path) -> None:
    bare = save_model_dir(tmp_path / "bare", chat_template=None)
    (problem,) = check_chains(before("chat_template", task="generate"), ChainModel(bare))
    assert problem == "preprocessing[0]=chat_template: the model has no chat template; remove it"


async def test_a_prompt_becomes_a_message_and_a_conversation_stays(directory: Path) -> None:
    host = ChainHost([ChainSpec(before("lowercase", "chat_template", task="generate"), directory)])
    try:
        made = await host.run(ChainRequest("r", "m", [ChainValue(text="HI"), ChainValue(texts=["HI", "YOU"])]))
        with pytest.raises(RequestError, match="chat template"):
            await host.run(ChainRequest("r", "m", [ChainValue(text="loop")]))
    finally:
        host.close()
    values = [one.value for one in made.values]
    assert values == [ChainValue(text="<s>[user]hi<|end|>[assistant]"), ChainValue(texts=["hi", "you"])]


async def test_a_host_that_cannot_be_made_leaves_no_process(directory: Path, tmp_path: Path) -> None:
    bare = save_model_dir(tmp_path, chat_template=None)
    config = before("chat_template", task="generate")
    with pytest.raises(ConfigError, match="no chat template"):
        ChainHost([ChainSpec(config, directory), ChainSpec(config, bare)])
    gc.collect()  # a worker that nobody has ended warns here, which is an error
