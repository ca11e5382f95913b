"""Calls that a model writes as JSON: an object with `name` and `arguments` (or `parameters`), several, or a list.

The arguments are handed on as they are written, from the moment in which the name is known; so they may break off. What
is not a call of one of the tools is left unread.
"""

import json

from serve_app.preprocessing.answers.calls_sink import CallsSink
from serve_app.preprocessing.answers.text_reader import Reading, TextReader

_ARGUMENT_KEYS = ("arguments", "parameters")
_SEPARATORS = (",", ";")


def read_json_calls(reader: TextReader, sink: CallsSink) -> Reading[None]:
    """Calls up to the first text that is none, which stays unread, as do blanks and separators before it."""
    num_before = sink.num_calls
    yield from reader.skip_blanks()
    in_list = yield from reader.skip("[")
    while True:
        yield from reader.skip_blanks()
        if not (yield from _read_call(reader, sink)):
            break
        reader.take()
        if sink.is_full:
            return
        yield from reader.skip_blanks()
        following = yield from reader.peek()
        if following == "]" and in_list:
            in_list = False
            reader.position += 1
            reader.take()
            yield from reader.skip_blanks()
            following = yield from reader.peek()
        if following in _SEPARATORS:
            reader.position += 1
        elif following != "{":
            break
    if sink.num_calls > num_before:
        reader.position = 0


def _read_call(reader: TextReader, sink: CallsSink) -> Reading[bool]:
    """One object, used unless it is not a call."""
    if not (yield from reader.skip("{")):
        return False
    name: str | None = None
    arguments: str | None = None
    yield from reader.skip_blanks()
    while (yield from reader.peek()) != "}":
        key = yield from _read_key(reader)
        if key is None:
            return False
        if key in _ARGUMENT_KEYS and arguments is None:
            if name is not None and (yield from reader.peek()) == "{":
                return (yield from _stream_arguments(reader, sink, name))
            arguments = yield from _read_value(reader)
            if arguments is None:
                return False
        else:
            value = yield from _read_value(reader)
            if value is None:
                return False
            if key == "name" and (name := _offered_name(value, sink)) is None:
                return False
        if not (yield from _skip_comma(reader)):
            return False
    reader.position += 1
    text = _object_of(arguments)
    if name is None or text is None or reader.is_too_long:
        return False
    sink.begin(name)
    sink.add(text)
    sink.end()
    return True


def _stream_arguments(reader: TextReader, sink: CallsSink, name: str) -> Reading[bool]:
    reader.take()
    sink.begin(name)
    is_whole = yield from reader.skip_value(sink.add)
    sink.add(reader.take())
    sink.end(is_cut=not is_whole and reader.is_ended)
    yield from reader.skip_blanks()
    while (yield from reader.skip(",")):
        yield from reader.skip_blanks()
        key = yield from _read_key(reader)
        value = None if key is None else (yield from _read_value(reader))
        if value is None:
            break
        yield from reader.skip_blanks()
    else:
        if (yield from reader.skip("}")):
            return True
    reader.position = 0  # what follows the arguments is no part of the call
    return True


def _read_key(reader: TextReader) -> Reading[str | None]:
    """A key, its colon and blanks around them; None when that is not what comes."""
    text = yield from _read_value(reader)
    key = None if text is None else _text_of(text)
    yield from reader.skip_blanks()
    if key is None or not (yield from reader.skip(":")):
        return None
    yield from reader.skip_blanks()
    return key


def _read_value(reader: TextReader) -> Reading[str | None]:
    """A value as it is written."""
    start = reader.position
    is_whole = yield from reader.skip_value()
    return reader.text[start : reader.position] if is_whole else None


def _skip_comma(reader: TextReader) -> Reading[bool]:
    """Read on to the next key, or to the object's end."""
    yield from reader.skip_blanks()
    if (yield from reader.skip(",")):
        yield from reader.skip_blanks()
        return True
    return (yield from reader.peek()) == "}"


def _offered_name(value: str, sink: CallsSink) -> str | None:
    name = _text_of(value)
    return name if name in sink.tools.parameters else None


def _text_of(value: str) -> str | None:
    if not value.startswith('"'):
        return None
    try:
        text = str(json.loads(value, strict=False))
    except ValueError:
        return None
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half pairs are no text


def _object_of(arguments: str | None) -> str | None:
    """The text of an object, which may be written as a string, and is empty when none is given; None: it is none."""
    if arguments is None or arguments == "null":
        return "{}"
    text = _text_of(arguments) if arguments.startswith('"') else arguments
    text = "{}" if text is not None and not text.strip() else text
    return text if text is not None and text.lstrip().startswith("{") else None
