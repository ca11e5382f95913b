"""Explanations of the shipped ticket classifier, whose labels hang on words that were put there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.errors import RequestError
from serve_app.gateway.bodies.explain import ExplainBody, ExplanationAnswer
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.types.shards import LoadQuantization, WeightScheme
from tests.fakes import save_model_dir
from tests.stage_backend import StageBackend
from tests.stage_group import lone_group, settings_of

MODEL = Path(__file__).parents[3] / "examples" / "text_classifier" / "model"
INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_embedding=True)
PLANTED = [
    ("Hello team, what about my invoice from last week", "invoice", "billing"),
    ("Good morning, where is the parcel that you have for me", "parcel", "delivery"),
    ("Hi, I would like to ask about my password please", "password", "login"),
]


@asynccontextmanager
async def tickets(directory: Path) -> AsyncIterator[Any]:
    """The shipped model and its int8 twin."""
    backend = StageBackend(save_model_dir(directory))
    common: dict[str, Any] = {
        "task": "classify",
        "architecture": "serve_app.models.text_classifier:TextClassifier",
        "arguments": {"vocab_size": 976, "num_labels": 6, "embedding_dim": 64, "hidden_size": 64},
    }
    for name, quantization in (("tickets", None), ("int8", INT8)):
        settings = settings_of(str(MODEL), quantization=quantization, **common)
        backend.serve(name, "classify", MODEL, lone_group(settings))
    plane = DataPlane(backend, GatewayConfig())
    try:
        yield plane.explanations
    finally:
        plane.close()


def first_word(answer: ExplanationAnswer) -> str:
    return max(answer.explanation.tokens, key=lambda token: token.score).text


@pytest.mark.parametrize(("text", "word", "label"), PLANTED)
@pytest.mark.parametrize("model", ["tickets", "int8"])
async def test_the_planted_word_comes_first(tmp_path: Path, model: str, text: str, word: str, label: str) -> None:
    async with tickets(tmp_path) as explanations:
        answer = await explanations.explain(ExplainBody(model=model, input=text, method="occlusion"))
    assert (answer.explanation.target, first_word(answer)) == (label, word)


async def test_the_int8_twin_agrees_with_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    async with tickets(tmp_path) as explanations:
        answer = await explanations.explain(
            ExplainBody(model="tickets", against="int8", input=PLANTED[0][0], method="occlusion")
        )
    assert answer.comparison.rank_correlation > 0.9
    largest = max(abs(token.score) for token in answer.explanation.tokens)
    assert 0 < abs(answer.comparison.differences[0].difference) < 0.1 * largest


@pytest.mark.parametrize(("text", "word", "label"), PLANTED)
async def test_integrated_gradients_name_the_planted_word_and_add_up_to_what_the_text_gains(
    tmp_path: Path, text: str, word: str, label: str
) -> None:
    async with tickets(tmp_path) as explanations:
        answer = await explanations.explain(ExplainBody(model="tickets", input=text, steps=300))
        hidden = await explanations.explain(ExplainBody(model="tickets", input=text, method="occlusion"))
    found = answer.explanation
    assert (found.method, found.replacement, found.target, first_word(answer)) == (
        "integrated_gradients",
        "pad",
        label,
        word,
    )
    assert found.value == pytest.approx(hidden.explanation.value, abs=1e-4)
    total = sum(token.score for token in found.tokens)
    assert total == pytest.approx(found.value - found.baseline_value + found.convergence_delta, abs=1e-5)
    assert abs(found.convergence_delta) < 0.01 * abs(found.value - found.baseline_value)


async def test_a_path_from_zeros_begins_at_another_value(tmp_path: Path) -> None:
    async with tickets(tmp_path) as explanations:
        answers = [
            await explanations.explain(ExplainBody(model="tickets", input=PLANTED[0][0], replacement=one))
            for one in ("pad", "zero")
        ]
    pad, zero = (answer.explanation for answer in answers)
    assert zero.replacement == "zero"
    assert zero.value == pytest.approx(pad.value, abs=1e-5)
    assert abs(zero.baseline_value - pad.baseline_value) > 0.1
    assert first_word(answers[1]) == "invoice"


async def test_without_gradients_auto_takes_occlusion_and_the_other_is_refused_by_name(tmp_path: Path) -> None:
    async with tickets(tmp_path) as explanations:
        alone = await explanations.explain(ExplainBody(model="int8", input="my invoice"))
        beside = await explanations.explain(ExplainBody(model="tickets", input="my invoice", against="int8"))
        chance = await explanations.explain(ExplainBody(model="tickets", input="my invoice", output="probability"))
        methods = {one.explanation.method for one in (alone, beside, chance)} | {beside.against.method}
        assert methods == {"occlusion"}
        refused: list[tuple[dict[str, Any], str]] = [
            ({"model": "int8"}, "model=int8: its weights are quantized"),
            ({"model": "tickets", "against": "int8"}, "model=int8: its weights are quantized"),
            ({"model": "tickets", "output": "probability"}, "only logits"),
            ({"model": "tickets", "replacement": "remove"}, "replacement=remove does not go with this method"),
            ({"model": "tiny"}, "model=tiny: it has no step that gives them"),
        ]
        for body, said in refused:
            with pytest.raises(RequestError, match=said):
                await explanations.explain(ExplainBody(input="my invoice", method="integrated_gradients", **body))


async def test_a_words_tokens_are_bounded_over_all_points_of_a_path(tmp_path: Path) -> None:
    async with tickets(tmp_path) as explanations:
        with pytest.raises(RequestError, match="at most 262144; send a shorter one, or fewer steps"):
            await explanations.explain(ExplainBody(model="tickets", input="invoice " * 512, steps=512))
