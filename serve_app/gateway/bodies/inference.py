"""Bodies and answers of embeddings, scores, ranks, classes and predictions. An unknown key is an error."""

import secrets
import time
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve_app.gateway.bodies.openai import EncodingFormat, NaturalInt, PositiveInt, Priority, TruncationSide

TruncateTokens = Annotated[int, Meta(ge=-1)]
EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "little", "big"]
Padding = Literal["max_length", "do_not_pad"]
Texts = str | list[str | list[int] | int]


class EntriesBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all have in common."""

    model: str | None = None
    truncate: bool | None = None  # cut longer texts to the model's longest
    truncate_prompt_tokens: TruncateTokens | None = None  # to so many tokens; -1: to the model's longest
    priority: Priority | None = None  # the lowest number comes first; None: the key's
    user: str | None = None  # from here on: taken and without effect
    request_id: str | None = None
    cache_salt: str | None = None  # nothing is kept of one request for the next


class EmbeddingsBody(EntriesBody):
    """`POST /v1/embeddings`."""

    input: Texts
    encoding_format: EncodingFormat | None = None
    dimensions: PositiveInt | None = None
    prompt_name: str | None = None  # of the model's prompts: which goes before each text
    input_type: str | None = None  # query, document, or a prompt's name: in place of prompt_name
    embed_dtype: EmbedDtype | None = None  # of base64 and bytes; None: float32
    endianness: Endianness | None = None  # of base64 and bytes; None: little
    truncation_side: TruncationSide | None = None  # of longer texts, what is cut off; None: right
    padding: Padding | None = None  # max_length: each text is filled up to the model's longest with its pad token


class ClassifyBody(EntriesBody):
    """`POST /v1/classify`."""

    input: Texts
    text_pair: str | list[str] | None = None  # the second text of each pair, for a model of pairs
    top_k: PositiveInt | None = None
    use_activation: bool | None = None  # false: the model's numbers as they are
    threshold: Annotated[float, Meta(ge=0, le=1)] | None = None  # of several labels: the least score shown


class ScoreBody(EntriesBody):
    """`POST /v1/score`: both sides, each under one of its names."""

    text_1: str | list[str] | None = None
    queries: str | list[str] | None = None
    data_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    data_2: str | list[str] | None = None
    use_activation: bool | None = None  # false: a cross-encoder's numbers as they are
    prompt_name: str | None = None  # of the model's prompts: before each text of an embedder, else the first


class RerankBody(EntriesBody):
    """`POST /v1/rerank`, in the shapes of Cohere and Jina. A document may be an object with its text under a name."""

    query: str
    documents: str | list[str | dict[str, object]]
    top_n: NaturalInt | None = None  # 0: all
    use_activation: bool | None = None  # false: a cross-encoder's numbers as they are
    return_documents: bool | None = None  # None: yes, as vLLM and Jina do
    rank_fields: list[str] | None = None  # of documents that are objects: what is read of them, in this order
    max_tokens_per_doc: int | None = None  # 0: all of them
    max_chunks_per_doc: PositiveInt | None = None  # without effect: a document is one chunk


class PredictBody(EntriesBody):
    """`POST /predict`: `text` for classifiers, `inputs` for modules that take tensors."""

    text: str | list[str] | None = None
    text_pair: str | list[str] | None = None  # the second text of each pair, for a model of pairs
    inputs: dict[str, object] | None = None
    top_k: PositiveInt | None = None
    restore_redactions: bool | None = None  # graphs only: in texts, what redact_pii has taken out


class PreprocessBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/preprocess`."""

    model: str | None = None
    input: str | list[str]
    reveal: bool | None = None  # show what redact_pii has taken out


class ShownValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value between two steps: the field that is there is its kind."""

    text: str | None = None
    texts: list[str] | None = None
    token_ids: list[int] | None = None


class ShownStep(msgspec.Struct, frozen=True):
    """What one step has made."""

    step: str
    value: ShownValue


class ShownRedaction(msgspec.Struct, frozen=True):
    """Something taken out; the original only when asked for."""

    placeholder: str
    kind: str
    original: str | UnsetType = UNSET


class PreprocessedText(msgspec.Struct, frozen=True):
    """What the steps have made of one text."""

    index: int
    value: ShownValue
    steps: list[ShownStep]
    redactions: list[ShownRedaction]


class PreprocessedList(msgspec.Struct, frozen=True):
    """One entry for each text."""

    model: str
    data: list[PreprocessedText]


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens that went in."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class AnswerList(msgspec.Struct, frozen=True, kw_only=True):
    """What lists of answers have in common."""

    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))
    created: int = msgspec.field(default_factory=lambda: int(time.time()))  # Unix time in seconds


class Embedding(msgspec.Struct, frozen=True):
    """One vector: numbers, or base64 of float32, little-endian unless `embed_dtype` and `endianness` say otherwise."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingList(AnswerList, frozen=True):
    """The vectors, in the order of the inputs."""

    model: str
    data: list[Embedding]
    usage: TokenUsage
    object: str = "list"


class LabelAnswer(msgspec.Struct, frozen=True):
    """A label and its probability."""

    label: str
    score: float


class Classification(msgspec.Struct, frozen=True):
    """One text's labels; `label` is the most probable one, None when several may hold and none does."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int
    labels: list[LabelAnswer]


class ClassificationList(AnswerList, frozen=True):
    """The classes, in the order of the inputs."""

    model: str
    data: list[Classification]
    usage: TokenUsage
    object: str = "list"


class ScoreEntry(msgspec.Struct, frozen=True):
    """How well a pair fits."""

    index: int
    score: float
    object: str = "score"


class ScoreList(AnswerList, frozen=True):
    """The scores, in the order of the pairs."""

    model: str
    data: list[ScoreEntry]
    usage: TokenUsage
    object: str = "list"


class RankedDocument(msgspec.Struct, frozen=True):
    """A document in its rank; `index` is its place in the request."""

    index: int
    relevance_score: float
    document: dict[str, object] | UnsetType = UNSET


class Ranking(AnswerList, frozen=True):
    """The documents, the most relevant first."""

    model: str
    results: list[RankedDocument]
    usage: TokenUsage


class Prediction(msgspec.Struct, frozen=True):
    """The answer for one text."""

    label: str | None
    probability: float | None
    probabilities: dict[str, float]


class OutputTensor(msgspec.Struct, frozen=True):
    """A named output: its elements in C order; a number that is not finite is null."""

    dtype: str
    shape: list[int]
    data: list[object]


class TensorPrediction(msgspec.Struct, frozen=True):
    """The outputs of a module."""

    outputs: dict[str, OutputTensor]


class GraphText(msgspec.Struct, frozen=True):
    """A text that a graph gives."""

    text: str


class GraphEmbedding(msgspec.Struct, frozen=True):
    """A vector that a graph gives."""

    embedding: list[float]


class GraphResults(msgspec.Struct, frozen=True):
    """What a graph with several results makes of one input: by name a value, or a list of them."""

    results: dict[str, object]
