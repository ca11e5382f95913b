"""Answers that may be a text or call tools, whose arguments are held to their schemas, as the grammar library's Lark.

The text is free but for the marks that begin calls: behind one, or at an answer's beginning where a format's calls need
no mark, nothing but a call of one of the tools can come. Where calls have to come, a list of them stands behind
reasoning.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.preprocessing.answers import mistral_calls
from serve_app.preprocessing.answers.call_schema import call_schema
from serve_app.preprocessing.answers.formats import REASONING_FORMATS, TOOL_FORMATS
from serve_app.preprocessing.answers.xml_grammar import xml_call_rules
from serve_app.preprocessing.grammar_text import HEAD, json_rule

_ARGUMENT_KEYS = {"hermes": "arguments", "llama3_json": "parameters", "mistral": "arguments", "json": "arguments"}
_RULES = r"""
TEXT: /(?s:.*)/
BLANKS: /[ \t\r\n]{0,8}/
"""


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """How the answers of one request may call."""

    tool_format: str  # a key of TOOL_FORMATS
    reasoning_format: str | None  # a key of REASONING_FORMATS, or None
    parameters: Mapping[str, dict[str, Any]]  # by name: schemas that arguments are held to
    is_parallel: bool = True  # an answer may have several calls
    starts_in_reasoning: bool = False  # the prompt has begun it
    content: str | None = None  # a rule that an answer without calls is held to; None: its text is free
    forced: dict[str, Any] | None = None  # schema of the list of calls that has to come; None: the model may choose

    def schema(self) -> dict[str, Any]:
        """All that arguments are held to."""
        if self.forced is not None:
            return self.forced
        return call_schema(self.parameters, "arguments")

    def text(self, special_tokens: Mapping[str, int]) -> str:
        """The grammar for a vocabulary with such special tokens, ids by text: a mark is one of them, or characters.

        Raises ConfigError for what the format cannot be held to.
        """
        marks = _Marks(special_tokens)
        if self.forced is not None:
            starts = " | ".join(self._reasoned(["calls"], marks))
            return f"{HEAD}start: {starts}{_RULES}{marks.rules}calls: {json_rule(self.forced)}\n"
        bodies = self._bare(marks) if TOOL_FORMATS[self.tool_format].is_bare else self._marked(marks)
        starts = " | ".join(self._reasoned(bodies, marks))
        content = "" if self.content is None else f"content: {self.content}\n"
        return f"{HEAD}start: {starts}{_RULES}{marks.rules}{content}{self._calls(marks)}"

    def _reasoned(self, bodies: list[str], marks: "_Marks") -> list[str]:
        """The same behind reasoning, which may be missing; where no calls have to come, it may be without an end."""
        if self.reasoning_format is None:
            return bodies
        given = REASONING_FORMATS[self.reasoning_format]
        begin = marks.mark(given.begin)
        if self.starts_in_reasoning:
            again = f"{begin}? " if marks.is_special(given.begin) else ""
            end = marks.behind_text(given.end)
            return [*(f"{again}{end} BLANKS {body}" for body in bodies), *([] if self.forced else [f"{again}TEXT"])]
        if marks.is_special(given.begin):
            reasoning, unended = f"{begin} {marks.behind_text(given.end)}", [f"{begin} TEXT"]
        else:
            marks.rules += rf"THOUGHT: /[ \t\r\n]*{re.escape(given.begin)}(?s:.*)/" + "\n"
            reasoning, unended = marks.behind_text(given.end, "THOUGHT"), ["THOUGHT"]
        return [*(f"({reasoning} BLANKS)? {body}" for body in bodies), *([] if self.forced else unended)]

    def _marked(self, marks: "_Marks") -> list[str]:
        given = TOOL_FORMATS[self.tool_format]
        (begin,) = given.begins
        end = "" if given.end is None else f" BLANKS {marks.mark(given.end)}"
        if self.content is not None:
            call = f"{marks.mark(begin)} BLANKS call{end} BLANKS"
            return [f"BLANKS ({call})+" if self.is_parallel else f"BLANKS {call}", "content"]
        call = f"{marks.behind_text(begin)} BLANKS call{end}"
        return [f"({call})* TEXT"] if self.is_parallel else [f"{call} BLANKS", "TEXT"]

    def _bare(self, marks: "_Marks") -> list[str]:
        given = TOOL_FORMATS[self.tool_format]
        calls = "call (BLANKS /[,;]/? BLANKS call)*" if self.is_parallel else "call"
        bodies = [f"BLANKS {calls} BLANKS"]
        beginnings = [r"[{\[]"]
        if given.fence is not None:
            opening, closing = map(json.dumps, given.fence)
            bodies.append(f"BLANKS {opening} BLANKS {calls} BLANKS {closing} BLANKS")
            beginnings.append(given.fence[0])
        if self.content is not None:
            return [
                *bodies,
                *(f"BLANKS {marks.mark(begin)} BLANKS {calls} BLANKS" for begin in given.begins),
                "content",
            ]
        bodies += ["OTHER", *(f"{marks.behind_text(begin, 'OTHER')} BLANKS {calls} BLANKS" for begin in given.begins)]
        marks.rules += rf"OTHER: /(?s:.*)/ & ~/[ \t\r\n]*({'|'.join(beginnings)})(?s:.*)/" + "\n"
        return bodies

    def _calls(self, marks: "_Marks") -> str:
        if self.tool_format == "qwen3_coder":
            return xml_call_rules(self.parameters)
        call = json_rule(call_schema(self.parameters, _ARGUMENT_KEYS[self.tool_format]))
        if self.tool_format != "mistral":
            return f"call: {call}\n"
        rules = [f'call: "[" BLANKS object (BLANKS "," BLANKS object)* BLANKS "]"\nobject: {call}\n']
        if not self.is_parallel:
            rules = [f'call: "[" BLANKS object BLANKS "]"\nobject: {call}\n']
        if marks.is_special(mistral_calls.ARGUMENTS):
            call_id = ""
            if marks.is_special(mistral_calls.CALL_ID):
                call_id = f"({marks.mark(mistral_calls.CALL_ID)} /[a-zA-Z0-9]{{9}}/)? "
            for index, (name, schema) in enumerate(self.parameters.items()):
                behind = f"{call_id}{marks.mark(mistral_calls.ARGUMENTS)} BLANKS {json_rule(schema)}"
                rules[0] = rules[0].replace("\nobject:", f" | named_{index}\nobject:", 1)
                rules.append(f"named_{index}: {json.dumps(name)} {behind}\n")
        return "".join(rules)


class _Marks:
    """How marks are written, and the rules that this needs."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        self.rules = ""
        self._num_heads = 0

    def is_special(self, mark: str) -> bool:
        return mark in self._special_tokens

    def mark(self, mark: str) -> str:
        token_id = self._special_tokens.get(mark)
        return json.dumps(mark, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"

    def behind_text(self, mark: str, text: str = "TEXT") -> str:
        """A mark at the end of a text that does not hold it."""
        if self.is_special(mark):
            return f"{text} {self.mark(mark)}"
        self._num_heads += 1
        self.rules += f"head_{self._num_heads}[lazy]: {text} {self.mark(mark)}\n"
        return f"head_{self._num_heads}"
