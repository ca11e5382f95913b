"""The names of attributes are those of OpenTelemetry's conventions."""

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes

from serve_app.tracing import attributes

_CONVENTIONS = (gen_ai_attributes, rpc_attributes, error_attributes, http_attributes)


def test_what_is_not_ours_is_in_a_convention() -> None:
    known = {value for module in _CONVENTIONS for value in vars(module).values() if isinstance(value, str)}
    names = {value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str)}
    assert attributes.INPUT_TOKENS in names & known
    assert {name for name in names - known if not name.startswith("rayshard")} == set()


def test_operations_are_those_that_the_convention_knows() -> None:
    known = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}
    assert {"chat", "text_completion", "embeddings"} <= known
