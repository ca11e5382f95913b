"""Bodies and answers of Cohere's `/v2/embed`, of text-embeddings-inference and of vLLM's `/pooling`."""

from typing import Literal

import msgspec

from serve_app.gateway.bodies.inference import AnswerList, EmbeddingsBody, TokenUsage
from serve_app.gateway.bodies.openai import PositiveInt, Priority

CohereFormat = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
CohereCut = Literal["NONE", "START", "END"]
Side = Literal["Left", "Right", "left", "right"]


class CohereInputPart(msgspec.Struct, kw_only=True):
    """One part of an input: a text."""

    type: str
    text: str | None = None


class CohereInputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One of `inputs`: its parts are one text, in lines."""

    content: list[CohereInputPart]


class CohereEmbedBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v2/embed`, of texts."""

    texts: list[str] | None = None
    inputs: list[CohereInputs] | None = None  # in place of texts
    images: list[str] | None = None  # refused
    model: str | None = None
    input_type: str | None = None  # Cohere's: a query's or a document's prompt; or the name of a prompt
    embedding_types: list[CohereFormat] | None = None
    output_dimension: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    truncate: CohereCut | None = None  # None: END, as Cohere does
    priority: Priority | None = None


class CohereVersion(msgspec.Struct, frozen=True):
    """Of Cohere's API."""

    version: str = "2"


class CohereTokens(msgspec.Struct, frozen=True):
    """Tokens that went in."""

    input_tokens: int


class CohereBilled(CohereTokens, frozen=True):
    """What went in, of each kind."""

    image_tokens: int = 0


class CohereMeta(msgspec.Struct, frozen=True):
    """What stands beside the vectors."""

    billed_units: CohereBilled
    tokens: CohereTokens
    api_version: CohereVersion = CohereVersion()


class CohereEmbeddings(msgspec.Struct, frozen=True):
    """The vectors of each format that was asked for, in the order of the texts."""

    id: str
    embeddings: dict[str, list[list[int | float] | str]]
    texts: list[str]
    meta: CohereMeta
    response_type: str = "embeddings_by_type"


class TeiEmbedBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /embed` of text-embeddings-inference."""

    inputs: str | list[str | list[int]]
    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Side | None = None
    normalize: bool | None = None  # None: yes, as there
    prompt_name: str | None = None
    dimensions: PositiveInt | None = None


class TeiRerankBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /rerank` of text-embeddings-inference: it has `texts` where others have `documents`."""

    query: str
    texts: list[str]
    model: str | None = None
    return_text: bool | None = None
    raw_scores: Literal[False] | None = None
    truncate: bool | None = None
    truncation_direction: Side | None = None


class TeiRank(msgspec.Struct, frozen=True, omit_defaults=True):
    """One text in its rank."""

    index: int
    score: float
    text: str | None = None


class PoolingBody(EmbeddingsBody):
    """`POST /pooling`: what a model makes of texts, whatever it is."""

    task: str | None = None  # what the model does: embed, classify or score
    use_activation: bool | None = None  # false: the numbers of a classifier or cross-encoder as they are


class Pooled(msgspec.Struct, frozen=True):
    """One vector, or the scores of one text."""

    index: int
    data: list[float] | str
    object: str = "pooling"


class PooledList(AnswerList, frozen=True):
    """In the order of the inputs."""

    model: str
    data: list[Pooled]
    usage: TokenUsage
    object: str = "list"
