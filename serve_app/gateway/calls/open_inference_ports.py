"""What each kind of model takes and gives in the Open Inference Protocol: one class for each."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import Body, convert_body
from serve_app.gateway.bodies.inference import ClassifyBody, EmbeddingsBody, PredictBody, ScoreBody
from serve_app.gateway.bodies.open_inference import PriorityParameter
from serve_app.gateway.bodies.openai import CompletionBody
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import GenerationCall, run_call, stream_call
from serve_app.gateway.calls.open_inference_tensors import BYTES, NamedTensor, PortSpec, numbers, spec_of, words
from serve_app.gateway.calls.tensor_inputs import check_tensors
from serve_app.types.models import ModelDescription

TEXT_INPUT, TEXT_OUTPUT = "text_input", "text_output"  # as Triton's generators call them
_NOT_HERE = {"model", "stream", "stream_options", "encoding_format"}  # carriers decide these

Parameters = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, slots=True)
class InferCall:
    """A call as a carrier has read it; nothing of it is checked against the model."""

    model: str
    version: str  # empty: whichever there is
    call_id: str
    inputs: list[NamedTensor]
    outputs: list[str] = field(default_factory=list)  # wanted; empty: all
    parameters: Parameters = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)  # of outputs of which only the largest numbers are wanted


class ModelPort(Protocol):
    """One model behind the protocol."""

    inputs: list[PortSpec]
    outputs: list[PortSpec]

    async def run(self, call: InferCall) -> list[NamedTensor]:
        """The outputs for checked inputs. Raises a RayshardError."""
        ...

    def stream(self, call: InferCall) -> AsyncIterator[list[NamedTensor]]:
        """The outputs in pieces."""
        ...


class _WholePort:
    """Base of the models whose answer comes at once."""

    inputs: list[PortSpec]
    outputs: list[PortSpec]

    def __init__(self, model: ModelDescription, plane: DataPlane) -> None:
        self._model = model
        self._plane = plane

    async def run(self, call: InferCall) -> list[NamedTensor]:
        raise NotImplementedError

    async def stream(self, call: InferCall) -> AsyncIterator[list[NamedTensor]]:
        """The answer as its only piece."""
        yield await self.run(call)


class EmbedPort(_WholePort):
    """Texts to vectors."""

    def __init__(self, model: ModelDescription, plane: DataPlane) -> None:
        super().__init__(model, plane)
        self.inputs = [PortSpec(TEXT_INPUT, BYTES, [-1])]
        self.outputs = [PortSpec("embedding", "FP32", [-1, model.embedding_size or -1])]

    async def run(self, call: InferCall) -> list[NamedTensor]:
        """One vector for each text."""
        body = body_of(call, EmbeddingsBody, input=texts_of(call, TEXT_INPUT))
        answer = await self._plane.calls.embed(body)
        return [numbers("embedding", [one.embedding for one in answer.data])]


class ClassifyPort(_WholePort):
    """Texts to labels."""

    def __init__(self, model: ModelDescription, plane: DataPlane) -> None:
        super().__init__(model, plane)
        self.inputs = [PortSpec(TEXT_INPUT, BYTES, [-1])]
        num_labels = len(model.labels) if model.labels and model.postprocessing_gives is None else -1
        labels = model.labels if num_labels > 0 else []
        self.outputs = [
            PortSpec("label", BYTES, [-1]),
            PortSpec("probabilities", "FP32", [-1, num_labels], tuple(labels)),
        ]

    async def run(self, call: InferCall) -> list[NamedTensor]:
        """The best label of each text, empty where none holds; and all probabilities in the labels' order."""
        body = body_of(call, ClassifyBody, input=texts_of(call, TEXT_INPUT))
        answer = await self._plane.calls.classify(body)
        labels = [one.label or "" for one in answer.data]
        widths = {len(one.probs) for one in answer.data}
        if len(widths) > 1:
            raise RequestError(
                f"model={self._model.name} keeps as many labels of each text as its postprocessing leaves, which is no "
                "tensor; send one text at a time, or ask for the output label alone through /predict",
                field="inputs",
            )
        return [words("label", labels), numbers("probabilities", [one.probs for one in answer.data])]


class ScorePort(_WholePort):
    """Pairs of texts to scores."""

    def __init__(self, model: ModelDescription, plane: DataPlane) -> None:
        super().__init__(model, plane)
        self.inputs = [PortSpec("text_1", BYTES, [-1]), PortSpec("text_2", BYTES, [-1])]
        self.outputs = [PortSpec("score", "FP32", [-1])]

    async def run(self, call: InferCall) -> list[NamedTensor]:
        """One score for each pair."""
        body = body_of(call, ScoreBody, text_1=texts_of(call, "text_1"), text_2=texts_of(call, "text_2"))
        answer = await self._plane.calls.score(body)
        return [numbers("score", [one.score for one in answer.data])]


class TensorPort(_WholePort):
    """A module of named tensors."""

    def __init__(self, model: ModelDescription, plane: DataPlane) -> None:
        super().__init__(model, plane)
        self.inputs = [spec_of(name, spec) for name, spec in model.inputs.items()]
        self.outputs = [spec_of(name, spec) for name, spec in model.outputs.items()]
        if len(self.outputs) == 1:
            self.outputs = [replace(self.outputs[0], labels=tuple(model.labels))]
        if model.postprocessing_gives is not None:
            self.outputs = [PortSpec("answer", BYTES, [1])]

    async def run(self, call: InferCall) -> list[NamedTensor]:
        """The module's outputs."""
        priority = _only_priority(call)
        item = {one.name: one.to_data() for one in call.inputs}
        check_tensors(item, self._model)
        outputs = await self._plane.calls.run_tensors(self._model, item, priority)
        if isinstance(outputs, str):
            return [words("answer", [outputs])]
        return [NamedTensor.of_data(name, one) for name, one in outputs.items()]


class GraphPort(_WholePort):
    """A graph: what `/predict` answers to each text, as JSON."""

    def __init__(self, model: ModelDescription, plane: DataPlane) -> None:
        super().__init__(model, plane)
        self.inputs = [PortSpec(TEXT_INPUT, BYTES, [-1])]
        self.outputs = [PortSpec("answer", BYTES, [-1])]

    async def run(self, call: InferCall) -> list[NamedTensor]:
        """One JSON text for each input, or one for all where the graph takes them together."""
        body = body_of(call, PredictBody, text=texts_of(call, TEXT_INPUT))
        answer = await self._plane.calls.predict(body)
        answers = answer if isinstance(answer, list) else [answer]
        return [words("answer", [msgspec.json.encode(one).decode() for one in answers])]


class GeneratePort:
    """A text to its continuation; sampling parameters are those of `/v1/completions`."""

    def __init__(self, model: ModelDescription, plane: DataPlane) -> None:
        self._model = model
        self._plane = plane
        self.inputs = [PortSpec(TEXT_INPUT, BYTES, [1])]
        self.outputs = [PortSpec(TEXT_OUTPUT, BYTES, [-1])]

    async def run(self, call: InferCall) -> list[NamedTensor]:
        """The whole text of each choice."""
        generation = await self._call(call)
        texts = [""] * generation.options.num_choices

        def add(_prompt: int, delta: ChoiceDelta) -> None:
            texts[delta.choice] += delta.text

        await run_call(generation, generation.runs(), self._plane.backend, add)
        return [words(TEXT_OUTPUT, texts)]

    async def stream(self, call: InferCall) -> AsyncIterator[list[NamedTensor]]:
        """New text as it comes, of a single choice."""
        generation = await self._call(call)
        if generation.options.num_choices > 1:
            raise RequestError(f"n={generation.options.num_choices} cannot be streamed here; send 1", field="n")
        async for pieces in stream_call(generation, generation.runs(), self._plane.backend, None):
            text = "".join(delta.text for _prompt, delta in pieces)
            if text:
                yield [words(TEXT_OUTPUT, [text])]

    async def _call(self, call: InferCall) -> GenerationCall:
        (prompt,) = texts_of(call, TEXT_INPUT)
        body = body_of(call, CompletionBody, prompt=prompt)
        return await self._plane.reader.completion(body, await self._plane.models.find(body.model))


_PORTS: dict[str, Callable[[ModelDescription, DataPlane], ModelPort]] = {
    "generate": GeneratePort,
    "embed": EmbedPort,
    "classify": ClassifyPort,
    "score": ScorePort,
    "predict": TensorPort,
    "graph": GraphPort,
}


def port_of(model: ModelDescription, plane: DataPlane) -> ModelPort:
    """The model behind the protocol; one whose files hold no tokenizer takes tensors, whatever its task."""
    if model.task in ("embed", "classify", "score") and not model.has_tokenizer:
        return TensorPort(model, plane)
    return _PORTS[model.task](model, plane)


def texts_of(call: InferCall, name: str) -> list[str]:
    """The texts of a checked input. Raises RequestError when one is not UTF-8."""
    (tensor,) = (tensor for tensor in call.inputs if tensor.name == name)
    texts = []
    for index, text in enumerate(tensor.texts):
        try:
            texts.append(text.decode())
        except UnicodeDecodeError:
            raise RequestError(f"inputs.{name}: element {index} is not UTF-8", field=f"inputs.{name}") from None
    return texts


def body_of(call: InferCall, body_type: type[Body], **fields: object) -> Body:
    """The body that a client of our own routes would have sent; parameters are its other keys. Raises RequestError."""
    for name in call.parameters:
        if name in fields or name in _NOT_HERE:
            raise RequestError(f"parameters.{name[:64]} is not for this protocol; leave it out", field="parameters")
    return convert_body({**call.parameters, **fields, "model": call.model}, body_type)


def _only_priority(call: InferCall) -> int | None:
    """The one parameter of a call of tensors. Raises RequestError for others."""
    for name in call.parameters:
        if name != "priority":
            raise RequestError(f"parameters.{name[:64]} is unknown; leave it out", field="parameters")
    return convert_body(dict(call.parameters), PriorityParameter).priority
