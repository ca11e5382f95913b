"""What a request's answer is held to: one grammar, whichever of the keys asks for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from serve_app.errors import ConfigError, RequestError
from serve_app.gateway.bodies.json_body import parse_json_value
from serve_app.gateway.bodies.openai import ChatBody, SamplingBody
from serve_app.gateway.bodies.structured import StructuredOutputs
from serve_app.gateway.calls.chat_tools import forced_calls, held_calls
from serve_app.gateway.calls.models import ServedModel
from serve_app.preprocessing.answers.call_grammar import CallGrammar
from serve_app.preprocessing.grammar_checker import GrammarChecker
from serve_app.preprocessing.grammar_text import HEAD, check_own_grammar, choice_grammar, json_rule, regex_grammar
from serve_app.preprocessing.schema_check import check_schema
from serve_app.preprocessing.text_pool import TextPool

_ANY_OBJECT: dict[str, object] = {"type": "object"}


class HeldAnswers:
    """Finds the grammar of a request, and has it tried out beside the event loop."""

    def __init__(self, pool: TextPool) -> None:
        self._pool = pool
        self._checker = GrammarChecker()

    async def grammar_of(self, body: SamplingBody, model: ServedModel, chat: str = "") -> str | None:
        """None where the text is free. chat: a conversation as the model is shown it. Raises RequestError."""
        asked = _asked(body, model, chat)
        if asked is None:
            return None
        _refuse_beside(body, model, asked.field)
        try:
            await self._pool.run(model.tokenizer.check_spellings)
        except ConfigError as error:
            raise RequestError(f"{asked.field}: {error.message}", field=asked.field) from error
        grammar = await self._pool.run(asked.grammar)
        tried = await self._checker.check(grammar, asked.field, is_own=asked.own is not None)
        special_tokens = {text: token_id for token_id, text in model.tokenizer.table.special_tokens.items()}
        return tried if asked.calls is None else await self._pool.run(asked.calls_grammar, special_tokens)

    def close(self) -> None:
        """End the process that tries grammars out."""
        self._checker.close()


@dataclass(frozen=True, slots=True)
class _Asked:
    field: str
    schema: dict[str, object] | str | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    own: str | None = None
    calls: CallGrammar | None = None
    content: "_Asked | None" = None  # beside calls: what an answer without them is held to
    has_whitespace: bool = True
    whitespace_pattern: str | None = None

    def grammar(self) -> str:
        """Raises RequestError."""
        if self.regex is not None:
            return regex_grammar(self.regex, self.field)
        if self.choice is not None:
            return choice_grammar(self.choice, self.field)
        if self.own is not None:
            return check_own_grammar(self.own, self.field)
        if self.calls is not None:
            check_schema(self.calls.schema(), self.field)
            return self.calls_grammar({})  # tried without the model's tokens: all its marks are characters
        return f"{HEAD}start: {self.rule()}"

    def rule(self) -> str:
        """Of JSON, as a part of a grammar. Raises RequestError."""
        schema = _parsed(self.schema, self.field) if isinstance(self.schema, str) else self.schema
        check_schema(schema, self.field)
        assert schema is True or isinstance(schema, dict)
        return json_rule(schema, has_whitespace=self.has_whitespace, whitespace_pattern=self.whitespace_pattern)

    def calls_grammar(self, special_tokens: Mapping[str, int]) -> str:
        """For a vocabulary with such tokens, ids by text. Raises RequestError."""
        assert self.calls is not None
        calls = self.calls if self.content is None else replace(self.calls, content=self.content.rule())
        try:
            return calls.text(special_tokens)
        except ConfigError as error:
            raise RequestError(error.message, field=self.field) from error


def _asked(body: SamplingBody, model: ServedModel, chat: str) -> _Asked | None:
    """Of an answer that has to call, content is none; one that may call is held to either."""
    asked = [*_of_format(body), *_of_structured(body.structured_outputs), *_of_guided(body)]
    if len(asked) > 1:
        raise _too_many(asked[0], asked[1])
    content = asked[0] if asked else None
    if not isinstance(body, ChatBody):
        return content
    calls = held_calls(body, model.description, chat, is_content_held=content is not None)
    schema = forced_calls(body)
    if schema is not None:
        return _Asked("tools", schema) if calls is None else _Asked("tools", calls=calls)
    if calls is None:
        return content
    of_tools = _Asked("tools", calls=calls, content=content)
    if content is not None and content.schema is None:
        raise _too_many(content, of_tools)
    return of_tools


def _too_many(one: _Asked, other: _Asked) -> RequestError:
    message = f"{one.field} and {other.field} both say what the answer is held to; send one of them"
    return RequestError(message, field=other.field)


def _of_format(body: SamplingBody) -> Iterator[_Asked]:
    given = body.response_format
    if given is None:
        return
    if given.type != "json_schema" and given.json_schema is not None:
        raise RequestError(
            f"response_format.json_schema is for type=json_schema, not {given.type}; leave it out",
            field="response_format.json_schema",
        )
    if given.type == "json_object":
        yield _Asked("response_format", _ANY_OBJECT)
    if given.type == "json_schema":
        if given.json_schema is None:
            raise RequestError("response_format.json_schema is missing", field="response_format.json_schema")
        schema = given.json_schema.schema
        yield _Asked("response_format.json_schema.schema", _ANY_OBJECT if schema is None else schema)


def _of_structured(given: StructuredOutputs | None) -> Iterator[_Asked]:
    if given is None:
        return
    field = "structured_outputs"
    is_json = given.json is not None or given.json_object is True
    if not is_json and (given.disable_any_whitespace or given.whitespace_pattern is not None):
        raise RequestError(f"{field}: what is said of whitespace needs json or json_object", field=field)
    held_json = partial(
        _Asked, has_whitespace=not given.disable_any_whitespace, whitespace_pattern=given.whitespace_pattern
    )
    found = []
    if given.json is not None:
        found.append(held_json(f"{field}.json", given.json))
    if given.json_object is True:
        found.append(held_json(f"{field}.json_object", _ANY_OBJECT))
    if given.regex is not None:
        found.append(_Asked(f"{field}.regex", regex=given.regex))
    if given.choice is not None:
        found.append(_Asked(f"{field}.choice", choice=given.choice))
    if given.grammar is not None:
        found.append(_Asked(f"{field}.grammar", own=given.grammar))
    if not found:
        raise RequestError(f"{field} needs one of json, regex, choice, grammar and json_object", field=field)
    yield from found


def _of_guided(body: SamplingBody) -> Iterator[_Asked]:
    pattern = body.guided_whitespace_pattern
    if body.guided_json is not None:
        yield _Asked("guided_json", body.guided_json, whitespace_pattern=pattern)
    elif pattern is not None:
        raise RequestError("guided_whitespace_pattern needs guided_json", field="guided_whitespace_pattern")
    if body.guided_regex is not None:
        yield _Asked("guided_regex", regex=body.guided_regex)
    if body.guided_choice is not None:
        yield _Asked("guided_choice", choice=body.guided_choice)
    if body.guided_grammar is not None:
        yield _Asked("guided_grammar", own=body.guided_grammar)


def _refuse_beside(body: SamplingBody, model: ServedModel, field: str) -> None:
    """Raises RequestError for what does not go together with a grammar."""
    for name, is_set, reason in (
        ("ignore_eos", body.ignore_eos, "the answer ends where its grammar does"),
        ("allowed_token_ids", body.allowed_token_ids, "no token may be left that both allow"),
        ("restore_redactions", body.restore_redactions, "what is put back may not fit"),
    ):
        if is_set:
            raise RequestError(f"{name} does not go with {field}: {reason}; leave it out", field=name)
    if not model.description.eos_token_ids:
        raise RequestError(
            f"{field}: model={model.description.name} has no token that ends an answer, so that none can end where its "
            "grammar does; leave it out",
            field=field,
        )


def _parsed(text: str, field: str) -> object:
    try:
        return parse_json_value(text.encode())
    except RequestError as error:
        raise RequestError(f"{field} is not a JSON schema: {error.message}", field=field) from error
