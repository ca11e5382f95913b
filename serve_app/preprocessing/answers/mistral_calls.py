"""Calls as Mistral's models write them behind `[TOOL_CALLS]`: a list of JSON objects, or names with their arguments."""

import string

from serve_app.preprocessing.answers.calls_sink import CallsSink
from serve_app.preprocessing.answers.json_calls import read_json_calls
from serve_app.preprocessing.answers.text_reader import Reading, TextReader

CALL_ID, ARGUMENTS = "[CALL_ID]", "[ARGS]"
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-")
_MAX_NAME_CHARS = 64


def read_mistral_calls(reader: TextReader, sink: CallsSink) -> Reading[None]:
    """Calls up to the first text that is none, which stays unread."""
    yield from reader.skip_blanks()
    if (yield from reader.peek()) in ("[", "{"):
        return (yield from read_json_calls(reader, sink))
    name = yield from reader.read_while(_NAME_CHARACTERS, _MAX_NAME_CHARS)
    call_id = ""
    if (yield from reader.skip(CALL_ID)):
        call_id = yield from reader.read_while(_NAME_CHARACTERS, _MAX_NAME_CHARS)
    yield from reader.skip(ARGUMENTS)
    yield from reader.skip_blanks()
    if name not in sink.tools.parameters or (yield from reader.peek()) != "{":
        return None
    reader.take()
    sink.begin(name, call_id[:_MAX_NAME_CHARS])
    is_whole = yield from reader.skip_value(sink.add)
    sink.add(reader.take())
    sink.end(is_cut=not is_whole and reader.is_ended)
    return None
