"""What a graph of models takes and gives."""

from dataclasses import dataclass, field
from typing import Literal

from serve_app.types.chains import LabelScore
from serve_app.types.tensors import Item

ValueKind = Literal["text", "embedding", "label", "tensors", "json"]


@dataclass(frozen=True, slots=True)
class GraphValue:
    """What a step of a graph gives; the field of its kind has one entry for each text that went in."""

    kind: ValueKind
    is_list: bool = False  # whether entries are shown as a list; otherwise there is one
    texts: list[str] = field(default_factory=list, repr=False)  # of text, and of json
    labels: list[list[LabelScore]] = field(default_factory=list)  # of each entry, in the model's order
    items: list[Item] = field(default_factory=list)  # of embedding and tensors
    is_multi_label: bool = False


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """Texts for a graph."""

    request_id: str
    graph: str
    inputs: list[str] = field(repr=False)
    queue_timeout_s: float | None = None
    restores_redactions: bool = False  # texts of the results hold again what steps have taken out
    cache_salt: str = ""  # of what its generators compute
    owner: str = ""  # whose it is: owners share its generators by tokens
    priority: int = 0  # of what its models run: the lowest comes first
    time_left_s: float | None = None  # from when it was sent; None: any
    session: str = ""  # as of a GenerateRequest
    trace: dict[str, str] = field(default_factory=dict)  # its W3C trace context; empty: it is not traced


@dataclass(frozen=True, slots=True)
class GraphRun:
    """What a graph makes of one input."""

    results: list[GraphValue]  # beside the graph's outputs


@dataclass(frozen=True, slots=True)
class GraphResult:
    """The answer to a GraphRequest."""

    names: list[str]  # of the results; empty: there is one, without a name
    runs: list[GraphRun]  # one for each input, or one for all
    is_joint: bool  # the graph takes the texts of a request together
    num_tokens: int  # that went into models
