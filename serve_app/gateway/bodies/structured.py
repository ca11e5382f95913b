"""What an answer's text is held to, as OpenAI and vLLM name it."""

from typing import Literal

import msgspec

FormatType = Literal["text", "json_object", "json_schema"]


class JsonSchemaFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`response_format.json_schema`. An answer is held to the schema whether `strict` is set or not."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, object] | bool | None = None  # None: any JSON object
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`response_format`."""

    type: FormatType
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`structured_outputs` of vLLM: one of the first five."""

    json: dict[str, object] | str | bool | None = None  # a schema, or its text
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark, or GBNF
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None  # between JSON's parts
    whitespace_pattern: str | None = None  # what may stand there
