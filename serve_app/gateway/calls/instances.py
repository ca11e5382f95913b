"""Calls as lists of instances, in the way of TF Serving, KServe v1 and TorchServe: one prediction for each."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.inference import EmbeddingsBody, PredictBody, ScoreBody, TensorPrediction
from serve_app.gateway.bodies.openai import CompletionBody
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import run_call
from serve_app.gateway.calls.inference import MAX_ENTRIES
from serve_app.types.models import ModelDescription

_TEXT_KEYS = ("text", "text_input", "data", "body")  # of an instance that is an object with a text


async def predict_instances(
    plane: DataPlane, model: ModelDescription, instances: object, parameters: Mapping[str, object]
) -> list[object]:
    """One prediction for each instance; parameters are keys of the model's own route. Raises RequestError."""
    if not isinstance(instances, list) or not 0 < len(instances) <= MAX_ENTRIES:
        raise RequestError(f"instances is not a list of 1 to {MAX_ENTRIES} entries", field="instances")
    given = {**parameters, "model": model.name}
    if model.task == "generate":
        return await _continue(plane, {**given, "prompt": _texts(instances)})
    if model.task == "predict" or (model.task in ("classify", "embed") and not model.has_tokenizer):
        return await _run_rows(plane, model, instances, given)
    if model.task == "embed":
        answer = await plane.calls.embed(convert_body({**given, "input": _texts(instances)}, EmbeddingsBody))
        return [one.embedding for one in answer.data]
    if model.task == "score":
        first, second = (_values(instances, name) for name in ("text_1", "text_2"))
        scores = await plane.calls.score(convert_body({**given, "text_1": first, "text_2": second}, ScoreBody))
        return [one.score for one in scores.data]
    if isinstance(instances[0], dict) and "text_pair" in instances[0]:
        texts = {name: _values(instances, name) for name in ("text", "text_pair")}
    else:
        texts = {"text": [*_texts(instances)]}
    predictions = await plane.calls.predict(convert_body({**given, **texts}, PredictBody))
    return predictions if isinstance(predictions, list) else [predictions]


def _texts(instances: Sequence[object]) -> list[str]:
    """The texts of instances that are texts, or objects with one."""
    texts = []
    for index, instance in enumerate(instances):
        given = instance
        if isinstance(instance, dict):
            keys = [key for key in _TEXT_KEYS if key in instance]
            given = instance[keys[0]] if len(keys) == 1 and len(instance) == 1 else None
        if not isinstance(given, str):
            raise RequestError(
                f'instances[{index}] is not a text; send a string, or {{"text": ...}}', field=f"instances[{index}]"
            )
        texts.append(given)
    return texts


def _values(instances: Sequence[object], name: str) -> list[object]:
    values = []
    for index, instance in enumerate(instances):
        if not isinstance(instance, dict) or name not in instance:
            raise RequestError(f"instances[{index}] has no {name}", field=f"instances[{index}]")
        values.append(instance[name])
    return values


async def _run_rows(
    plane: DataPlane, model: ModelDescription, instances: Sequence[object], given: Mapping[str, object]
) -> list[object]:
    """Rows of named tensors, joined along their first dimension; the outputs are cut into rows again."""
    names = list(model.inputs)
    if len(names) == 1 and not any(isinstance(instance, dict) for instance in instances):
        inputs = {names[0]: list(instances)}
    else:
        for index, instance in enumerate(instances):
            if not isinstance(instance, dict) or instance.keys() != set(names):
                message = f"instances[{index}] is not an object with {sorted(names)}"
                raise RequestError(message, field=f"instances[{index}]")
        inputs = {name: _values(instances, name) for name in names}
    answer = await plane.calls.predict(convert_body({**given, "inputs": inputs}, PredictBody))
    if not isinstance(answer, TensorPrediction):
        return [answer]
    columns: dict[str, list[object]] = {}
    for name, tensor in answer.outputs.items():
        rows = _rows(tensor.data, tensor.shape)
        if len(rows) != len(instances):
            raise RequestError(
                f"model={model.name} gives {name} of shape {tensor.shape}, which is not one row for each instance; "
                "use /predict",
                field="model",
            )
        columns[name] = rows
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [{name: rows[index] for name, rows in columns.items()} for index in range(len(instances))]


def _rows(data: list[object], shape: list[int]) -> list[Any]:
    """Elements in C order as nested lists."""
    if not shape:
        return []
    for size in reversed(shape[1:]):
        data = [data[start : start + size] for start in range(0, len(data), max(size, 1))]
    return data


async def _continue(plane: DataPlane, given: Mapping[str, object]) -> list[object]:
    body = convert_body(dict(given), CompletionBody)
    if body.stream or (body.n or 1) > 1:
        raise RequestError(
            "stream and n are for /v1/completions; leave them out", field="stream" if body.stream else "n"
        )
    call = await plane.reader.completion(body, await plane.models.find(body.model))
    texts = [""] * len(call.requests)

    def add(prompt: int, delta: ChoiceDelta) -> None:
        texts[prompt] += delta.text

    await run_call(call, call.runs(), plane.backend, add)
    return list(texts)


def encoded(predictions: object) -> bytes:
    """JSON of predictions, whatever they are made of."""
    return msgspec.json.encode(predictions)
