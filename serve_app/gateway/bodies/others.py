"""Bodies and answers of routes that are no API of their own: health, tokens, and the known tools' calls."""

from typing import Annotated

import msgspec
from msgspec import Meta

from serve_app.backend.protocol import Newcomer
from serve_app.types.models import CopyState
from serve_app.types.plans import CopyAccount


class HealthBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """`GET /health`; status and num_starting alone without a key where keys are needed."""

    status: str  # ok, unavailable, draining
    detail: str | None = None
    models: dict[str, list[CopyState]] | None = None
    newcomers: dict[str, Newcomer] | None = None  # by application; left out where there is none
    asleep: list[str] | None = None  # models without a copy until somebody asks; left out where there is none
    num_starting: int = 0  # newcomers that are on their way; everybody may know


class PlanBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """`GET /v1/admin/plan`: the copies of each model that are up."""

    models: dict[str, list[CopyAccount]]
    silent: dict[str, list[str]] | None = None  # copies by model that have not answered; left out where there is none


class Ping(msgspec.Struct, frozen=True):
    """`GET /ping`."""

    status: str


class ModelName(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of `GET /models`."""

    model_name: str
    model_url: str


class Version(msgspec.Struct, frozen=True):
    """`GET /version`."""

    version: str


class Load(msgspec.Struct, frozen=True):
    """`GET /load`."""

    server_load: int  # requests that run or wait


class TokenizedText(msgspec.Struct, frozen=True):
    """`POST /v1/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(msgspec.Struct, frozen=True):
    """`POST /v1/detokenize`."""

    prompt: str


class PredictInstancesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/models/{name}:predict`."""

    instances: Annotated[list[object], Meta(min_length=1)]
    signature_name: str = "serving_default"
    parameters: dict[str, object] = {}  # keys of the model's own route


class Predictions(msgspec.Struct, frozen=True):
    """One prediction for each instance."""

    predictions: list[object]
