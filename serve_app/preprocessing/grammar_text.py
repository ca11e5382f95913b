"""What an answer is to be held to, as the grammar library's Lark: JSON schemas, patterns, choices, grammars.

Grammars here force no tokens: where one text alone can come next, the model still chooses how it is cut into tokens.
"""

import json
import re
from collections.abc import Sequence

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from serve_app.errors import RequestError
from serve_app.preprocessing.closed_schema import close_objects
from serve_app.preprocessing.grammar_limits import MAX_GRAMMAR_BYTES, MAX_VALUES

JSON_WHITESPACE = r" ?|\r?\n[ \t]{0,64}"  # one space, or a line's end and an indent: no model writes blanks for ever
HEAD = '%llguidance {"no_forcing": true}\n'
_OWN_WORDS = re.compile(r"%(llguidance|json|regex|lark)\b")


def schema_grammar(
    schema: dict[str, object] | bool, *, has_whitespace: bool = True, whitespace_pattern: str | None = None
) -> str:
    """JSON of a schema that check_schema has passed. whitespace_pattern: between its parts; None: JSON_WHITESPACE."""
    return f"{HEAD}start: {json_rule(schema, has_whitespace=has_whitespace, whitespace_pattern=whitespace_pattern)}"


def json_rule(
    schema: dict[str, object] | bool, *, has_whitespace: bool = True, whitespace_pattern: str | None = None
) -> str:
    """The same, as a part of a rule; see close_objects for what its objects may have."""
    options: dict[str, object] = {"lenient": False, "whitespace_flexible": has_whitespace}
    if has_whitespace:
        options["whitespace_pattern"] = JSON_WHITESPACE if whitespace_pattern is None else whitespace_pattern
    content = close_objects(schema) if isinstance(schema, dict) else {}
    return f"%json {json.dumps({'x-guidance': options, **content})}"


def regex_grammar(pattern: str, field: str) -> str:
    """A text that a regular expression describes from beginning to end. Raises RequestError."""
    _refuse_large(pattern, field)
    if not pattern:
        raise RequestError(f"{field} is empty; send a regular expression", field=field)
    return f"{HEAD}start: /{regex_to_lark(pattern, 'd')}/"


def choice_grammar(choices: Sequence[str], field: str) -> str:
    """One of some texts. Raises RequestError."""
    if not choices or "" in choices:
        raise RequestError(f"{field} needs texts that are not empty; send at least one", field=field)
    if len(choices) > MAX_VALUES:
        raise RequestError(f"{field} has {len(choices)} texts; send at most {MAX_VALUES}", field=field)
    texts = [json.dumps(one, ensure_ascii=False) for one in dict.fromkeys(choices)]
    _refuse_large("".join(texts), field)
    return f"{HEAD}start: {' | '.join(texts)}"


def check_own_grammar(text: str, field: str) -> str:
    """A text that a grammar in Lark or GBNF describes, as it was sent. Raises RequestError."""
    _refuse_large(text, field)
    if _OWN_WORDS.search(text):
        raise RequestError(f"{field}: directives of llguidance are not taken; write rules and terminals", field=field)
    return text


def own_grammar(text: str) -> str:
    """The same in Lark. Takes any time, and raises whatever the library does: for processes that may be killed."""
    return HEAD + any_to_lark(text)


def _refuse_large(text: str, field: str) -> None:
    num_bytes = len(text.encode())
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise RequestError(f"{field} has {num_bytes} bytes; send at most {MAX_GRAMMAR_BYTES}", field=field)
