"""Routes that callers of TorchServe, TF Serving, KServe v1 and vLLM know.

https://docs.pytorch.org/serve/inference_api.html, https://www.tensorflow.org/tfx/serving/api_rest,
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from http import HTTPStatus

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.errors import RequestError, UnprocessableError
from serve_app.gateway.bodies.convert import parse_body
from serve_app.gateway.bodies.inference import Prediction
from serve_app.gateway.bodies.json_body import parse_json_value
from serve_app.gateway.bodies.others import (
    Load,
    ModelName,
    Ping,
    PredictInstancesBody,
    Predictions,
    Version,
)
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.instances import encoded, predict_instances
from serve_app.gateway.calls.open_inference import server_version
from serve_app.gateway.http.openai_responses import ModelList, model_card
from serve_app.gateway.http.shell import RequestShell, json_answer, json_bytes
from serve_app.types.models import ModelDescription


def compatible_routes(plane: DataPlane, shell: RequestShell) -> list[Route]:
    """The paths of the known tools."""
    endpoints = _CompatibleEndpoints(plane, shell)
    return [
        Route("/ping", endpoints.ping),
        Route("/version", endpoints.version),
        Route("/load", endpoints.load),
        Route("/models", endpoints.models),
        Route("/tokenizer_info", endpoints.tokenizer_info),
        Route("/predictions/{name:path}", endpoints.predictions, methods=["POST", "PUT"]),
        Route("/v1/models/{name:path}:predict", endpoints.predict, methods=["POST"]),
    ]


class ModelNames(ModelList, frozen=True, kw_only=True):
    """`GET /models`: TorchServe's list beside OpenAI's."""

    models: list[ModelName]


class _CompatibleEndpoints:
    def __init__(self, plane: DataPlane, shell: RequestShell) -> None:
        self._plane = plane
        self._shell = shell

    async def ping(self, _request: Request) -> Response:
        """TorchServe's health."""
        is_healthy = self._plane.is_ready
        status = HTTPStatus.OK if is_healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return json_answer(Ping("Healthy" if is_healthy else "Unhealthy"), status=status)

    async def version(self, _request: Request) -> Response:
        """vLLM's question."""
        return json_answer(Version(server_version()))

    async def load(self, _request: Request) -> Response:
        """vLLM's question: what runs or waits, of the models that are there for the caller."""
        copies = self._plane.backend.health().models
        found = [copy for model in self._plane.models.all() for copy in copies.get(model.name, [])]
        return json_answer(Load(sum(copy.num_running + copy.num_waiting for copy in found)))

    async def models(self, _request: Request) -> Response:
        """TorchServe's list, and OpenAI's beside it for clients that know no /v1."""
        models = self._plane.models.all()
        names = [ModelName(model.name, model.name) for model in models]
        return json_answer(ModelNames([model_card(model) for model in models], models=names))

    async def tokenizer_info(self, request: Request) -> Response:
        """vLLM's question: what the files of a tokenizer say."""
        model = await self._plane.models.find_text_model(request.query_params.get("model"))
        return json_bytes(msgspec.json.encode(model.tokenizer.info))

    async def predictions(self, request: Request) -> Response:
        """TorchServe's call: a text, a JSON value, or `{"instances": [...]}`."""
        model = await self._model(request.path_params["name"].removesuffix("/1.0"))  # the one version there is
        instances, is_list = _torchserve_instances(await self._shell.read(request), request)
        made = await self._shell.run(request, predict_instances(self._plane, model, instances, {}))
        shown = [one.probabilities if isinstance(one, Prediction) else one for one in made]
        return json_bytes(encoded(shown if is_list else shown[0]))

    async def predict(self, request: Request) -> Response:
        """TF Serving's and KServe's call."""
        body = parse_body(await self._shell.read(request), PredictInstancesBody)
        if body.signature_name != "serving_default":
            raise RequestError("signature_name is another than serving_default; leave it out", field="signature_name")
        model = await self._model(request.path_params["name"])
        work = predict_instances(self._plane, model, body.instances, body.parameters)
        return json_answer(Predictions(await self._shell.run(request, work)))

    async def _model(self, name: str) -> ModelDescription:
        await self._plane.models.meet(name)
        return self._plane.models.describe(name)


def _torchserve_instances(content: bytes, request: Request) -> tuple[object, bool]:
    """The instances of a body, and whether it was a list of them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise UnprocessableError("multipart/form-data is not read; send the text itself, or JSON", field="body")
    if kind != "application/json":
        return [_text(content)], False
    value = parse_json_value(content)
    if isinstance(value, dict):
        return (value["instances"], True) if value.keys() == {"instances"} else ([value], False)
    return (value, True) if isinstance(value, list) else ([value], False)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"body is not UTF-8 at byte {error.start}; send a text or JSON", field="body") from error
