"""A process that renders chat templates and nothing else: `python -m serve_app.preprocessing.template_worker`.

A request is JSON {"template", "variables"}; a reply is one status byte and a UTF-8 text. Standard library and jinja2
only, so that it starts soon.
"""

import json
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serve_app.preprocessing.process_frames import answer_frames

RENDERED = b"k"
RAISED = b"r"  # the template called raise_exception
FAILED = b"f"  # the template is broken, or does not fit the messages
TOO_LARGE = b"l"


def main(timeout_s: float, max_output_bytes: int, max_memory_bytes: int) -> None:
    """Answer requests until stdin closes."""
    answer_frames(lambda request: _answer(request, max_output_bytes), timeout_s, max_memory_bytes)


def _answer(request: bytes, max_output_bytes: int) -> bytes:
    try:
        content = json.loads(request)
        return _render(content["template"], content["variables"], max_output_bytes)
    except _TemplateRaisedError as error:
        return RAISED + str(error)[:1000].encode("utf-8", errors="replace")
    except MemoryError:
        return TOO_LARGE
    except TemplateSyntaxError as error:
        return FAILED + f"line {error.lineno}: {error.message}"[:1000].encode("utf-8", errors="replace")
    except Exception as error:  # templates are foreign code
        return FAILED + f"{type(error).__name__}: {error}"[:1000].encode("utf-8", errors="replace")


def _render(template: str, variables: dict[str, Any], max_output_bytes: int) -> bytes:
    pieces: list[bytes] = []
    num_bytes = 0
    for piece in _compile(template).generate(**variables):
        pieces.append(piece.encode("utf-8"))
        num_bytes += len(pieces[-1])
        if num_bytes > max_output_bytes:
            return TOO_LARGE
    return RENDERED + b"".join(pieces)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


class _GenerationBlock(Extension):
    """`{% generation %}` marks what a training run learns from: for us, plain content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateRaisedError(TemplateError):
    pass


def _raise_exception(message: object = "") -> NoReturn:
    raise _TemplateRaisedError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
