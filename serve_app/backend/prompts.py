"""Which of a model's prompts goes before a text."""

from serve_app.errors import RequestError
from serve_app.types.models import ModelDescription

_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")  # prompts; the first that holds a text counts
_TYPES = {
    "query": _QUERY,
    "search_query": _QUERY,
    "document": _DOCUMENT,
    "passage": ("passage", *_DOCUMENT),
    "search_document": _DOCUMENT,
}


def default_prompt(model: ModelDescription) -> str:
    """What goes before a text of a request that says nothing; empty: nothing."""
    return "" if model.default_prompt_name is None else model.prompts[model.default_prompt_name]


def named_prompt(model: ModelDescription, name: str | None) -> str:
    """The prompt of this name, the model's default without one. Raises RequestError."""
    if name is None:
        return default_prompt(model)
    if name not in model.prompts:
        raise RequestError(
            f"prompt_name={name[:100]!r} is not a prompt of model={model.name}; {_known(model)}", field="prompt_name"
        )
    return model.prompts[name]


def typed_prompt(model: ModelDescription, input_type: str) -> str:
    """The prompt of queries or of documents, in the way of encode_query and encode_document of sentence-transformers.

    Empty where the model has none for them. Any other type is the name of a prompt. Raises RequestError.
    """
    if input_type in _TYPES:
        return next((model.prompts[name] for name in _TYPES[input_type] if model.prompts.get(name)), "")
    if input_type not in model.prompts:
        raise RequestError(
            f"input_type={input_type[:100]!r} is neither query nor document nor a prompt of model={model.name}; "
            f"{_known(model)}",
            field="input_type",
        )
    return model.prompts[input_type]


def _known(model: ModelDescription) -> str:
    return f"use one of {sorted(model.prompts)[:16]}" if model.prompts else "it has none; leave it out"
