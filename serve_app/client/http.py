"""The client's HTTP carrier: OpenAI's routes and the Open Inference Protocol's binary tensors."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from serve_app.client.calls import (
    Arrays,
    CallOptions,
    Classification,
    Piece,
    Sampling,
    error_of_status,
)
from serve_app.errors import InternalError, RayshardError, RequestError, UnavailableError

_JSON_LENGTH = "inference-header-content-length"
_KINDS = {"b": "BOOL", "i": "INT", "u": "UINT", "f": "FP"}
_DTYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


class HttpCarrier:
    """Calls over HTTP; `address` is the server's URL."""

    def __init__(self, address: str) -> None:
        self._client = httpx.AsyncClient(base_url=address, timeout=httpx.Timeout(None, connect=10.0))

    async def generate(
        self, model: str | None, prompt: str | Sequence[int], sampling: Sampling, options: CallOptions
    ) -> AsyncIterator[Piece]:
        """Pieces of a text's continuation."""
        given = prompt if isinstance(prompt, str) else list(prompt)
        async for choice in self._stream("/v1/completions", {**sampling, "model": model, "prompt": given}, options):
            yield Piece(choice["text"], choice["index"], choice["finish_reason"])

    async def chat(
        self, model: str | None, messages: Sequence[Mapping[str, str]], sampling: Sampling, options: CallOptions
    ) -> AsyncIterator[Piece]:
        """Pieces of a conversation's answer."""
        body = {**sampling, "model": model, "messages": [dict(message) for message in messages]}
        async for choice in self._stream("/v1/chat/completions", body, options):
            yield Piece(choice["delta"].get("content") or "", choice["index"], choice["finish_reason"])

    async def embed(
        self, model: str | None, texts: Sequence[str], settings: Sampling, options: CallOptions
    ) -> NDArray[np.float32]:
        """Vectors [N, D]."""
        answer = await self._post("/v1/embeddings", {**settings, "model": model, "input": list(texts)}, options)
        return np.array([one["embedding"] for one in answer["data"]], np.float32)

    async def classify(
        self, model: str | None, texts: Sequence[str], settings: Sampling, options: CallOptions
    ) -> list[Classification]:
        """Labels of each text."""
        answer = await self._post("/v1/classify", {**settings, "model": model, "input": list(texts)}, options)
        return [
            Classification(one["label"], {label["label"]: label["score"] for label in one["labels"]})
            for one in answer["data"]
        ]

    async def predict(self, model: str, inputs: Arrays, options: CallOptions) -> dict[str, NDArray[np.generic]]:
        """A module's outputs."""
        tensors, pieces = [], []
        for name, array in inputs.items():
            raw = np.ascontiguousarray(array).tobytes()
            tensors.append(
                {
                    "name": name,
                    "datatype": _datatype_of(name, array.dtype),
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": len(raw)},
                }
            )
            pieces.append(raw)
        head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        headers = {**options.headers(), _JSON_LENGTH: str(len(head))}
        path = f"/v2/models/{model}/infer"
        response = await self._send("POST", path, content=b"".join([head, *pieces]), headers=headers)
        return _arrays_of(response)

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def _post(self, path: str, body: Mapping[str, object], options: CallOptions) -> Any:
        return (await self._send("POST", path, json=_set(body), headers=options.headers())).json()

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise UnavailableError(f"the server cannot be reached ({type(error).__name__})") from error
        if response.status_code != httpx.codes.OK:
            raise _error_of(response)
        return response

    async def _stream(self, path: str, body: Mapping[str, object], options: CallOptions) -> AsyncIterator[Any]:
        """The choices of each event."""
        content = _set({**body, "stream": True})
        is_ended = False
        try:
            async with self._client.stream("POST", path, json=content, headers=options.headers()) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _error_of(response)
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        is_ended = True
                        break
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise error_of_status(_status_of(event["error"]), event["error"]["message"], None, None)
                    for choice in event["choices"]:
                        yield choice
        except httpx.HTTPError as error:
            raise UnavailableError(f"the connection broke ({type(error).__name__})") from error
        if not is_ended:
            raise InternalError("the stream ended before the answer did")


def _set(body: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if value is not None}


def _error_of(response: httpx.Response) -> RayshardError:
    retry_after = response.headers.get("retry-after", "")
    retry_after_s = float(retry_after) if retry_after.isdecimal() else None
    field = None
    message = f"the server answered {response.status_code}"
    try:
        error = response.json()["error"]
        message = error if isinstance(error, str) else error["message"]
        field = None if isinstance(error, str) else error.get("param")
    except (ValueError, KeyError, TypeError):
        pass  # a proxy's answer, not ours
    return error_of_status(response.status_code, message, field, retry_after_s)


def _status_of(error: Mapping[str, object]) -> int:
    """The status that an error inside a stream would have had."""
    kinds = {"invalid_request_error": 400, "rate_limit_error": 429, "timeout_error": 504}
    kinds |= {"service_unavailable": 503, "shard_lost": 503}
    return kinds.get(str(error.get("type")), 500)


def _datatype_of(name: str, dtype: np.dtype[np.generic]) -> str:
    kind = _KINDS.get(dtype.kind)
    if kind is None:
        raise RequestError(f"inputs.{name} has dtype {dtype}, which no model takes; convert it", field=f"inputs.{name}")
    return kind if kind == "BOOL" else f"{kind}{8 * dtype.itemsize}"


def _arrays_of(response: httpx.Response) -> dict[str, NDArray[np.generic]]:
    length = int(response.headers.get(_JSON_LENGTH, len(response.content)))
    outputs = json.loads(response.content[:length])["outputs"]
    arrays: dict[str, NDArray[np.generic]] = {}
    position = length
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        raw = response.content[position : position + size]
        position += size
        arrays[output["name"]] = _array_of(output["datatype"], output["shape"], raw)
    return arrays


def _array_of(datatype: str, shape: Sequence[int], raw: bytes) -> NDArray[np.generic]:
    if datatype == "BF16":  # numpy has none: the upper half of a float32
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if datatype == "BYTES":
        raise InternalError("the model answers text; use classify, or /predict")
    return np.frombuffer(raw, _DTYPES.get(datatype, datatype.lower())).reshape(shape)
