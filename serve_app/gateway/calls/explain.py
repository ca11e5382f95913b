"""Explanations: a model's answer by the words that it hangs on, and another model's beside it."""

from collections.abc import Sequence

from serve_app.errors import ModelNotFoundError, RequestError
from serve_app.gateway.bodies.explain import ExplainBody, ExplanationAnswer, ModelExplanation
from serve_app.gateway.bodies.inference import TokenUsage
from serve_app.gateway.calls.compared_scores import compare
from serve_app.gateway.calls.explain_answers import AnswerExplanations
from serve_app.gateway.calls.explain_labels import LabelExplanations
from serve_app.gateway.calls.explained import Explained
from serve_app.gateway.calls.models import ServedModel, ServedModels
from serve_app.types.models import ModelDescription

_TASKS = ("generate", "classify", "score")
_GENERATORS_ONLY = ("max_tokens",)
_LABELS_ONLY = ("text_pair", "output", "steps")


class ExplainCalls:
    """One method: a checked body in, an answer out. Knows no carrier."""

    def __init__(self, models: ServedModels, labels: LabelExplanations, answers: AnswerExplanations) -> None:
        self._models = models
        self._labels = labels
        self._answers = answers

    async def explain(self, body: ExplainBody) -> ExplanationAnswer:
        """The explanation, and with `against` that of the other model and where they disagree. Raises RequestError."""
        await self._models.meet(body.against)
        other = None if body.against is None else self._other(body.against)
        description = self._models.for_tasks(body.model, _TASKS)  # after the other: the request is counted as its
        if other is not None:
            _check_kinds(description, other)
        _check_fields(body, description)
        has_gradients = _has_gradients(body, [description] if other is None else [description, other])
        if body.steps is not None and not has_gradients:
            message = "steps is for integrated_gradients, and the method is occlusion; leave it out"
            raise RequestError(message, field="steps")
        served = await self._models.with_tokenizer(description)
        first = await self._explain(body, served, body.target, has_gradients)
        if other is None:
            usage = _usage([first])
            return ExplanationAnswer(model=description.name, explanation=first.answer, usage=usage)
        second = await self._explain(body, await self._models.with_tokenizer(other), first.answer.target, has_gradients)
        _check_texts(first.answer, second.answer)
        return ExplanationAnswer(
            model=description.name,
            explanation=first.answer,
            against=second.answer,
            comparison=compare(first.answer, second.answer, body.top_n),
            usage=_usage([first, second]),
        )

    async def _explain(
        self, body: ExplainBody, model: ServedModel, target: str | int | None, has_gradients: bool
    ) -> Explained:
        if model.description.task == "generate":
            if isinstance(target, int):
                message = f"target={target} is an index, and model={model.description.name} generates; send a text"
                raise RequestError(message, field="target")
            return await self._answers.by_occlusion(body, model, target)
        if has_gradients:
            return await self._labels.by_gradients(body, model, target)
        return await self._labels.by_occlusion(body, model, target)

    def _other(self, name: str) -> ModelDescription:
        try:
            return self._models.describe(name)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(error.message.replace("model=", "against=", 1), field="against") from error


def _check_kinds(first: ModelDescription, other: ModelDescription) -> None:
    if (other.task == "generate") != (first.task == "generate") or other.task not in _TASKS:
        raise RequestError(
            f"against={other.name} serves {other.task} and model={first.name} {first.task}; compare models of one kind",
            field="against",
        )


def _check_fields(body: ExplainBody, model: ModelDescription) -> None:
    is_generator = model.task == "generate"
    for name in _LABELS_ONLY if is_generator else _GENERATORS_ONLY:
        if getattr(body, name) is not None:
            kind = "classifiers and cross-encoders" if is_generator else "models that generate"
            raise RequestError(f"{name} is for {kind}, and model={model.name} serves {model.task}", field=name)
    if body.top_n is not None and body.against is None:
        raise RequestError("top_n counts differences to another model; send it with against", field="top_n")


def _has_gradients(body: ExplainBody, models: Sequence[ModelDescription]) -> bool:
    """Whether the models are explained by integrated gradients. Raises RequestError where they cannot be, and shall."""
    if body.method == "occlusion":
        return False
    problem = next((f"model={one.name}: {one.gradient_problem}" for one in models if one.gradient_problem), None)
    if problem is None and body.output == "probability":
        problem = "output=probability: only logits are explained so"
    if body.method == "integrated_gradients" and problem is not None:
        raise RequestError(f"method=integrated_gradients: {problem}; send auto or occlusion", field="method")
    return problem is None and (body.method == "integrated_gradients" or body.replacement != "remove")


def _check_texts(first: ModelExplanation, second: ModelExplanation) -> None:
    if (first.text, first.text_pair) != (second.text, second.text_pair):
        raise RequestError(
            f"against={second.model}: its steps make another text of input than those of model={first.model}, so their "
            "words cannot be compared; explain each by itself",
            field="against",
        )


def _usage(explained: list[Explained]) -> TokenUsage:
    read = sum(one.num_prompt_tokens for one in explained)
    written = sum(one.num_output_tokens for one in explained)
    return TokenUsage(read, read + written, written)
