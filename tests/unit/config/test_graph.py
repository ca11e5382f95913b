"""The settings of a graph, and whether its steps fit together."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config.graph import GraphConfig
from serve_app.config.model import ModelConfig
from serve_app.graphs.check import (
    ModelKinds,
    check_graph,
    port_of_config,
    port_of_description,
    result_kind,
)
from tests.fakes_graph import LABELS, described, head

HERE = Path(__file__).parent
PORTS = {
    description.name: port_of_description(description)
    for description in [
        described(HERE, "minilm", "embed"),
        described(HERE, "lang", "classify"),
        described(HERE, "pairs", "score"),
        described(HERE, "chat-de", "generate"),
        described(HERE, "chat-en", "generate"),
        described(HERE, "mute", "embed", has_tokenizer=False),
        head(HERE),
        head(HERE, "wide", size=768),
        head(HERE, "numbers", "predict"),
    ]
}


def graph(*steps: dict[str, Any], output: Any = None, **more: Any) -> GraphConfig:
    values = {"name": "p", "steps": list(steps), "output": steps[-1]["name"] if output is None else output}
    return GraphConfig.model_validate({**values, **more})


def problem(*steps: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ValidationError) as error:
        graph(*steps, **more)
    (details,) = error.value.errors()
    return details["msg"]


def model(name: str, called: str = "minilm", **more: Any) -> dict[str, Any]:
    return {"name": name, "model": called, **more}


def chain(name: str, *steps: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "chain": list(steps), **more}


LANGUAGE = model("language", "lang")
ANSWER = {"name": "answer", "choose": "language", "cases": {"de": "chat-de"}, "default": "chat-en"}


def test_steps_come_in_the_order_in_which_they_can_run() -> None:
    config = graph(model("c", input="b"), model("b", input="a"), chain("a", "lowercase"), output="c")
    assert [step.name for step in config.ordered_steps] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("output", "names"),
    [("a", [None]), (["a", "b"], ["a", "b"]), ({"x": "b", "y": "a"}, ["x", "y"])],
)
def test_the_output_is_one_step_or_several_under_names(output: Any, names: list[str | None]) -> None:
    config = graph(model("b"), model("a", input="b"), output=output)
    assert [one.name for one in config.output] == names
    assert config.has_one_result == (names == [None])


def test_settings_survive_the_way_to_a_replica() -> None:
    config = graph(model("a"), model("b"), output={"x": "b", "y": "a"})
    assert GraphConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("steps", "more", "expected"),
    [
        (
            [model("a", input="b"), model("b", input="a")],
            {},
            "steps: a <- b <- a go round in a circle; let one of them",
        ),
        ([model("a", input="a")], {}, "steps: a <- a go round in a circle"),
        (
            [model("vectors"), model("b", input="vektors")],
            {},
            "step b: input='vektors' is not a step; did you mean vectors",
        ),
        ([model("a", input="texts")], {}, "step a: input='texts' is not a step; did you mean text?"),
        ([model("a"), model("b")], {}, "step a: nothing uses it; name it in output, or remove it"),
        ([model("a"), model("a")], {}, "steps: name='a' is given more than once"),
        ([model("a")], {"output": "aa"}, "output: 'aa' is not a step; did you mean a?"),
        ([model("a")], {"output": {"": "a"}}, "output: '' cannot be a result's name"),
        ([model("a")], {"output": 3}, "output is a step's name, a list of them, or `name: step` lines"),
        ([model("a")], {"output": []}, "output is a step's name, a list of them"),
        ([{"name": "a"}], {}, "step a: does nothing; give it one of chain, model, choose"),
        ([model("a", chain=["lowercase"])], {}, "step a: has chain and model; give it one of"),
        ([chain("a")], {}, "step a: chain is empty"),
        ([model("a", default="m")], {}, "step a: default has no effect without choose"),
        ([model("a", cases={"x": "m"})], {}, "step a: cases has no effect without choose"),
        (
            [LANGUAGE, {"name": "a", "choose": "language", "default": "m"}],
            {},
            "step a: choose needs two models or more",
        ),
        ([LANGUAGE, {**ANSWER, "choose": "text"}], {}, "step answer: choose='text' is not a step; use one of language"),
        ([chain("a", "lowercase", max_tokens=3)], {}, "step a: max_tokens has no effect on a chain; remove it"),
        ([model("text")], {}, "name='text' cannot be a step's name"),
        ([model("a b")], {}, "name='a b' cannot be a step's name"),
        ([model("a")], {"name": "a/b/c"}, "name='a/b/c' cannot be a graph's name"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(steps: list[dict[str, Any]], more: dict[str, Any], expected: str) -> None:
    assert expected in problem(*steps, **more)


@pytest.mark.parametrize(
    ("steps", "more", "gives"),
    [
        ([chain("s", "split_sentences"), model("v", input="s"), model("h", "head", input="v")], {}, "labels"),
        ([chain("s", "lowercase"), model("v", input="s")], {}, "embedding"),
        ([LANGUAGE, ANSWER], {}, "text"),
        ([model("v"), model("n", "numbers", input="v"), model("h", "head", input="n")], {}, "label"),
        ([chain("s", "lowercase"), model("v", input="s")], {"input": "texts"}, "embedding"),
        ([model("v"), LANGUAGE], {"output": ["v", "language"]}, "results"),
        ([model("a", "chat-en", max_tokens=3, temperature=1, is_chat=True), model("v", input="a")], {}, "embedding"),
    ],
)
def test_steps_that_fit_together_give_a_kind(steps: list[dict[str, Any]], more: dict[str, Any], gives: str) -> None:
    config = graph(*steps, **more)
    assert check_graph(config, PORTS) == []
    assert result_kind(config, PORTS) == gives


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([model("a", "minilmm")], "step a: model=minilmm is not served by this file; did you mean minilm?"),
        ([model("a", "zzz")], "step a: model=zzz is not served by this file; use one of minilm, lang"),
        ([LANGUAGE, model("a", input="language")], "step a: minilm takes text, but step language gives label"),
        (
            [LANGUAGE, chain("a", "lowercase", input="language")],
            "step a: chain takes text, but step language gives label",
        ),
        ([model("a", "head")], "step a: head takes tensors, but the request gives text"),
        ([model("v"), model("a", "wide", input="v")], "step a: wide takes vectors of 768, but minilm gives 3 numbers"),
        ([model("v"), {**ANSWER, "choose": "v"}], "step answer: choose takes one label, but step v gives embedding"),
        (
            [chain("s", "split_sentences"), model("l", "lang", input="s"), {**ANSWER, "choose": "l", "input": "s"}],
            "step answer: choose takes one label, but step l gives labels",
        ),
        (
            [LANGUAGE, {**ANSWER, "default": "minilm"}],
            "step answer: cases must give the same kind, but chat-de gives text, minilm gives embedding",
        ),
        (
            [LANGUAGE, {**ANSWER, "cases": {"ed": "chat-de"}}],
            f"step answer: choose: cases.ed is not a label of step language; use {LABELS}",
        ),
        (
            [LANGUAGE, {"name": "answer", "choose": "language", "cases": {"de": "chat-de", "en": "chat-en"}}],
            "step answer: choose: nothing is chosen for label 'fr'; add it to cases, or default",
        ),
        ([model("a", "pairs")], "step a: pairs scores pairs of texts, and a step has one text; use embed"),
        ([model("a", "mute")], "step a: mute takes text, but has no tokenizer.json; add it"),
        ([model("a", max_tokens=3)], "step a: max_tokens has no effect on task=embed; remove it"),
        ([chain("a", "lowercas")], "step a: chain[0]=lowercas: is not a step; did you mean lowercase?"),
        ([chain("a", "tokenize")], "step a: chain[0]=tokenize: is for the steps of a model itself; remove it here"),
        ([chain("a", {"truncate": {"max_tokens": 3}})], "step a: chain[0]=truncate takes token_ids, but the request"),
        (
            [chain("s", "split_sentences"), chain("a", "split_sentences", input="s")],
            "step a: chain[0]=split_sentences takes text, but step s gives texts; change their order",
        ),
    ],
)
def test_an_edge_of_two_kinds_is_refused(steps: list[dict[str, Any]], expected: str) -> None:
    assert any(message.startswith(expected) for message in check_graph(graph(*steps), PORTS))


def test_every_edge_that_does_not_fit_is_named() -> None:
    config = graph(LANGUAGE, model("a", input="language"), model("b", "head"), output=["a", "b"])
    assert len(check_graph(config, PORTS)) == 2


def test_a_module_that_declares_its_inputs_itself_is_checked_when_it_is_loaded() -> None:
    config = ModelConfig(name="m", source="x", task="classify", architecture="a:B")
    assert port_of_config(config) == ModelKinds("m", "classify", None, "label")
    steps = graph(model("v"), model("m", "m", input="v"))
    assert check_graph(steps, {**PORTS, "m": port_of_config(config)}) == []


def test_a_transformers_model_of_the_file_takes_text() -> None:
    port = port_of_config(ModelConfig(name="m", source="x", task="classify"), ["a", "b"])
    assert (port.takes, port.gives, port.labels) == ("text", "label", ["a", "b"])
