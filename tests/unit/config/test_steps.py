"""How steps are written."""

import pytest
from pydantic import JsonValue, TypeAdapter, ValidationError

from serve_app.config.steps import Step, StepConfig

STEPS: TypeAdapter[StepConfig] = TypeAdapter(Step)


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("lowercase", {}),
        ({"lowercase": None}, {}),
        ({"lowercase": {"locale": "de"}}, {"locale": "de"}),
        ({"name": "lowercase"}, {}),
        ({"name": "lowercase", "arguments": {"locale": "de"}}, {"locale": "de"}),
    ],
)
def test_a_step_is_its_name_or_its_name_with_arguments(written: object, arguments: dict[str, JsonValue]) -> None:
    assert STEPS.validate_python(written) == StepConfig(name="lowercase", arguments=arguments)


@pytest.mark.parametrize("written", ["", {}, {"lowercase": 3}, {"lowercase": {}, "strip_html": {}}, 7])
def test_what_is_not_a_step_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        STEPS.validate_python(written)
