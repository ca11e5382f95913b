"""A process that renders chat templates and nothing else: `python -m serve_app.preprocessing.template_worker`.

It may be killed at any time, and is by its own timer when a template takes more than its CPU time. Frames on stdin and
stdout: 4 bytes length (big endian), then the content. A request is JSON {"template", "variables"}; a reply is one
status byte and a UTF-8 text. Standard library and jinja2 only.
"""

import json
import os
import resource
import signal
import struct
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

READY = b"+"
RENDERED = b"k"
RAISED = b"r"  # the template called raise_exception
FAILED = b"f"  # the template is broken, or does not fit the messages
TOO_LARGE = b"l"
LENGTH = struct.Struct(">I")
OVERTIME = signal.SIGPROF  # what kills a worker whose template has used up its time


def main(timeout_s: float, max_output_bytes: int, max_memory_bytes: int) -> None:
    """Answer requests until stdin closes."""
    _limit_resources(max_memory_bytes)
    source, sink = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up between frames
    _write_frame(sink, READY)
    while (request := _read_frame(source)) is not None:
        signal.setitimer(signal.ITIMER_PROF, timeout_s)  # CPU time: a busy machine is no endless template
        reply = _answer(request, max_output_bytes)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write_frame(sink, reply)


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


def _limit_resources(max_memory_bytes: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, max_memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, hard))


def _read_frame(source: Any) -> bytes | None:
    header = source.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (num_bytes,) = LENGTH.unpack(header)
    content: bytes = source.read(num_bytes)
    return content if len(content) == num_bytes else None


def _write_frame(sink: Any, content: bytes) -> None:
    sink.write(LENGTH.pack(len(content)) + content)
    sink.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
