"""A process that tries grammars out: `python -m serve_app.preprocessing.grammar_worker`.

A request is one byte, READY_MADE or OWN, and a grammar; a reply is FITS and the grammar that answers can be held to, or
REFUSED and why not. Grammars are compiled by foreign code whose time no limit of its own bounds in every case: here it
may be killed.
"""

import sys

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from serve_app.preprocessing.grammar_limits import parser_limits
from serve_app.preprocessing.grammar_text import own_grammar
from serve_app.preprocessing.process_frames import answer_frames

READY_MADE, OWN = b"r", b"o"  # as it is to be, or as a client wrote it
FITS, REFUSED = b"f", b"x"
_EOS = 256
_MAX_REASON_CHARS = 500


class _Bytes:
    """A vocabulary that can write any text."""

    eos_token_id = _EOS
    bos_token_id = None
    special_token_ids = (_EOS,)

    def __init__(self) -> None:
        self.tokens = [*(bytes([value]) for value in range(256)), b"<eos>"]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def main(timeout_s: float, max_memory_bytes: int) -> None:
    """Answer requests until stdin closes."""
    tokens = LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=_EOS + 1, eos_token=[_EOS])
    answer_frames(lambda request: answer(tokens, request), timeout_s, max_memory_bytes)


def answer(tokens: LLTokenizer, request: bytes) -> bytes:
    """The reply to a request."""
    grammar = request[1:].decode()
    if request[:1] == OWN:
        try:
            grammar = own_grammar(grammar)
        except Exception as error:  # the converter raises plain Exception for whatever it cannot read
            return REFUSED + f"it is neither Lark nor GBNF: {error}"[:_MAX_REASON_CHARS].encode()
    reason = try_grammar(tokens, grammar)
    return REFUSED + reason.encode() if reason else FITS + grammar.encode()


def try_grammar(tokens: LLTokenizer, grammar: str) -> str:
    """Why a text cannot be held to a grammar; empty: it can."""
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=parser_limits())
    if matcher.is_error():
        return _short(matcher.get_error())
    words = np.zeros(-(-tokens.vocab_size // 32), dtype=np.int32)
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    if matcher.is_error():
        return _short(matcher.get_error())
    return "" if words.any() else "no text fits it"


def _short(error: str) -> str:
    """The library's words without the line of the grammar that it shows, which is not the client's."""
    lines = [line.strip() for line in error.replace("<non-verbose/>", "").splitlines()]
    told = [line for line in lines if line and not line[0].isdigit() and "|" not in line and set(line) - set("^ ")]
    text = "; ".join(told or lines[:1]).replace("NoExtensionBias", "no text fits it")
    if lines and lines[0][:3] == "at ":
        first = lines[0].partition(": ")[2]
        text = "; ".join([first, *[line for line in told if line != lines[0]]])
    return text[:_MAX_REASON_CHARS]


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
