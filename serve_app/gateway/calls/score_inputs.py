"""What scores and ranks are asked of: the two sides of pairs, and the texts of documents."""

from collections.abc import Sequence

from serve_app.errors import RequestError
from serve_app.gateway.bodies.inference import ScoreBody

_DEFAULT_FIELDS = ("text",)  # Cohere's, of a document that is an object


def side_of(body: ScoreBody, names: Sequence[str]) -> tuple[list[str], str]:
    """The texts of one side of the pairs, and the name they came under. Raises RequestError."""
    given = [name for name in names if getattr(body, name) is not None]
    if not given:
        raise RequestError(f"{names[0]} is missing; send it, or one of {', '.join(names[1:])}", field=names[0])
    if len(given) > 1:
        raise RequestError(f"{given[0]} and {given[1]} are names of the same; send one", field=given[1])
    (name,) = given
    texts = getattr(body, name)
    if not texts:
        raise RequestError(f"{name} is empty; send a text", field=name)
    return [texts] if isinstance(texts, str) else texts, name


def document_texts(documents: Sequence[str | dict[str, object]], fields: Sequence[str] | None) -> list[str]:
    """What is read of each document: of an object the values of these fields, in lines. Raises RequestError."""
    if not documents:
        raise RequestError("documents is empty; send at least one", field="documents")
    if fields is not None and not fields:
        raise RequestError("rank_fields is empty; name a field of the documents, or leave it out", field="rank_fields")
    return [
        document if isinstance(document, str) else _object_text(document, f"documents[{index}]", fields)
        for index, document in enumerate(documents)
    ]


def _object_text(document: dict[str, object], where: str, fields: Sequence[str] | None) -> str:
    """A field that a document lacks is passed over, as long as it has one of them."""
    values = []
    for name in fields or _DEFAULT_FIELDS:
        value = document.get(name)
        if value is None:
            continue
        if isinstance(value, list | dict):
            shown = f"{where}.{name[:64]}"
            raise RequestError(f"{shown} is not a text; send one, or leave it out of rank_fields", field=shown)
        values.append(value if isinstance(value, str) else str(value))
    if not values:
        wanted = " or ".join(name[:64] for name in (fields or _DEFAULT_FIELDS)[:8])
        raise RequestError(f"{where} has no {wanted}; send a text, or name its fields in rank_fields", field=where)
    return "\n".join(values)
