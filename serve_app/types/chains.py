"""What the steps before and after a model take and give."""

from dataclasses import dataclass, field

from serve_app.types.tensors import Item


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of an answer, and its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ChainValue:
    """What one step hands to the next: exactly one of these is set, and gives the value's kind."""

    text: str | None = None
    texts: list[str] | None = None
    token_ids: list[int] | None = None
    numbers: list[float] | None = None  # a model's one output for an entry
    tensors: Item | None = None  # a model's outputs for an entry
    labels: list[LabelScore] | None = None
    json: str | None = None  # whatever a class of the user's has made of a model's outputs


@dataclass(frozen=True, slots=True)
class Redaction:
    """Something taken out of a text."""

    placeholder: str  # what stands in its place, such as <EMAIL_1>
    kind: str  # email, phone, card, iban, ip
    original: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """Values to be run through the steps before a model, or through those after it."""

    request_id: str
    model: str
    values: list[ChainValue]
    has_trace: bool = False  # every step's value is wanted
    is_after: bool = False  # the values are the model's outputs
    trace: dict[str, str] = field(default_factory=dict)  # its W3C trace context; empty: it is not traced


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What one step made of a value."""

    step: str
    value: ChainValue


@dataclass(frozen=True, slots=True)
class ChainOutcome:
    """What a chain made of one value."""

    value: ChainValue
    redactions: list[Redaction] = field(default_factory=list)
    trace: list[StepTrace] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What a chain made of a ChainRequest."""

    values: list[ChainOutcome]  # beside the request's values
