"""Whatever sees a user's text takes at most about twice as long for twice the text, however the text is made."""

import gc
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest

from serve_app.config.steps import StepConfig
from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import parse_body
from serve_app.gateway.bodies.json_body import parse_json_object
from serve_app.gateway.bodies.openai import ChatBody
from serve_app.gateway.calls.chat_messages import content_of
from serve_app.preprocessing.chain import Chain, make_chain
from serve_app.preprocessing.detokenizer import ByteLevelDetokenizer, WindowDetokenizer
from serve_app.preprocessing.pii import KIND_NAMES, Originals, Restorer, redact
from serve_app.preprocessing.stop_strings import StopStrings
from serve_app.preprocessing.token_table import TokenTable
from serve_app.types.chains import ChainValue, Redaction
from tests.fakes import byte_fallback_tokenizer, byte_level_tokenizer

MAX_RATIO = 2.5
LEAST_S = 0.01  # the least of what is measured; most of it takes above 20 ms
MAX_SIZE = 1 << 20
Work = Callable[[], object]  # on an input that is made already


def test_twice_the_work_is_told_from_four_times() -> None:
    assert ratio_of(lambda size: lambda: sum(range(size))) < MAX_RATIO
    assert ratio_of(lambda size: lambda: [sum(range(size // 64)) for _ in range(size // 64)]) > MAX_RATIO


TEXT_STEPS = {
    "normalize_unicode": ["a\u0301\u0323", "\u0301\u0323", "\ufb01", "\u1112\u1161\u11ab", "\u0e33"],
    "lowercase": ["\u03a3", "\u0130", "A\u0301"],
    "collapse_whitespace": [" ", "a \n"],
    "strip_html": ["<", "<a ", '<a "', "<a '>", "</", "<!--", "<!-->", "<script>", "&#0", "&#9", "&amp", "<p>"],
    "split_sentences": [".", ".a", "...a", "a. ", "J. ", "1. ", "\u3002", "\u3002\u300d", "\n ", '."', ". ("],
    "redact_pii": [
        *("a", "a.", "@a.", "a@b.de ", "a\u0301@", ":", "f:", "::1 ", "de89 ", "<EMAIL_1>"),
        *("1", "1 ", "1-", "1.", "+1", "(1", "00 ", "0 11 ", "4111 ", "01.02.", "555-123-4567 ", "\uff11"),
    ],
}


@pytest.mark.parametrize(("step", "piece"), [(step, piece) for step, some in TEXT_STEPS.items() for piece in some])
def test_a_text_step(step: str, piece: str) -> None:
    chain = chain_of(step)

    def prepare(size: int) -> Work:
        value = ChainValue(text=piece * (size // len(piece)) + "a")
        return lambda: tolerant(lambda: chain.run(value, has_trace=False))

    assert ratio_of(prepare) <= MAX_RATIO


def test_as_many_different_addresses_as_a_text_holds() -> None:
    def prepare(size: int) -> Work:
        text = " ".join(f"u{number:07}@example.org" for number in range(size // 20))
        return lambda: redact(text, KIND_NAMES)

    assert ratio_of(prepare) <= MAX_RATIO


def test_as_many_placeholders_as_a_text_holds() -> None:
    def prepare(size: int) -> Work:
        text = "".join(f"<EMAIL_{number:07}> a{number:07}@b.de " for number in range(size // 20))
        return lambda: redact(text, KIND_NAMES)

    assert ratio_of(prepare) <= MAX_RATIO


def numbered(count: int) -> list[Redaction]:
    return [Redaction(f"<EMAIL_{number:07}>", "email", f"a{number:07}@b.de") for number in range(count)]


def test_redacted_texts_that_are_put_back_one_by_one() -> None:
    def prepare(size: int) -> Work:
        redactions = numbered(size // 20)
        return lambda: list(map(Originals(redactions).restore, (one.placeholder for one in redactions)))

    assert ratio_of(prepare) <= MAX_RATIO


@pytest.mark.parametrize("piece", ["<", "<EMAIL_1", "<EMAIL_1>", "<email_9"])
def test_a_growing_text_that_is_put_back(piece: str) -> None:
    def prepare(size: int) -> Work:
        originals = Originals(numbered(size // 20))

        def work() -> None:
            restorer = Restorer(originals)
            for _ in range(size // 8):
                restorer.feed(piece)

        return work

    assert ratio_of(prepare) <= MAX_RATIO


@pytest.mark.parametrize(
    ("stop", "text"), [("a" * 1000 + "b", "a"), ("ab" * 500, "aba"), ("<" * 1024, "<"), ("x", "y")]
)
def test_a_stop_matcher(stop: str, text: str) -> None:
    def prepare(size: int) -> Work:
        def work() -> None:
            matcher = StopStrings([stop, *(f"{stop[:900]}{number}" for number in range(8))]).matcher()
            assert matcher is not None
            for _ in range(size // 8):
                matcher.feed(text)

        return work

    assert ratio_of(prepare) <= MAX_RATIO


def test_special_tokens_that_are_not_shown_while_a_beginning_is_held_back() -> None:
    def prepare(size: int) -> Work:
        def run() -> None:
            matcher = StopStrings(["abc", "aaaE"], special_tokens="EF").matcher()
            assert matcher is not None
            matcher.feed("xab")
            for _ in range(size):
                matcher.feed_hidden("F")
                matcher.feed_hidden("E")
            assert matcher.feed("d") == "abd"

        return run

    assert ratio_of(prepare) <= MAX_RATIO


@pytest.mark.parametrize("token", ["byte", "unknown", "special", "word"])
@pytest.mark.parametrize("kind", ["byte_level", "window"])
def test_a_detokenizer(kind: str, token: str) -> None:
    core = byte_level_tokenizer() if kind == "byte_level" else byte_fallback_tokenizer()
    table = TokenTable(core)
    ids = range(core.get_vocab_size())
    token_ids = {
        "byte": next(one for one in ids if table.bytes_of(one) == b"\xff"),
        "unknown": core.get_vocab_size() + 7,
        "special": next(iter(table.special_token_ids)),
        "word": core.encode("the", add_special_tokens=False).ids[-1],
    }

    def prepare(size: int) -> Work:
        def work() -> None:
            detokenizer = (
                ByteLevelDetokenizer(table, skipped_ids=table.special_token_ids)
                if kind == "byte_level"
                else WindowDetokenizer(core, skipped_ids=table.special_token_ids)
            )
            for _ in range(size // 8):
                detokenizer.push(token_ids[token])
            detokenizer.flush()

        return work

    assert ratio_of(prepare) <= MAX_RATIO


BODIES: dict[str, Callable[[int], str]] = {
    "arrays": lambda size: '{"a":[' + "[]," * size + "[]]}",
    "open arrays": lambda size: '{"a":' + "[" * size,
    "integer": lambda size: '{"a":' + "1" * size + "}",
    "integers": lambda size: '{"a":[' + f"{'1' * 20}," * (size // 20) + "1]}",
    "fraction": lambda size: '{"a":1.' + "1" * size + "}",
    "exponent": lambda size: '{"a":1e' + "1" * size + "}",
    "not a number": lambda size: '{"a":[' + "NaN," * size + "1]}",
    "quotes": lambda size: '{"a":' + '"' * size + "}",
    "backslashes": lambda size: '{"a":"' + "\\" * size + '"}',
    "half pairs": lambda size: '{"a":[' + '"\\ud800",' * size + '"x"]}',
    "keys": lambda size: "{" + ",".join(f'"{number:07}":1' for number in range(size // 8)) + "}",
    "keys twice": lambda size: "{" + ",".join(f'"{number // 2:07}":1' for number in range(size // 8)) + "}",
    "blanks": lambda size: " " * size + "{}",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_json_body(name: str) -> None:
    def prepare(size: int) -> Work:
        body = BODIES[name](size).encode()
        return lambda: tolerant(lambda: parse_json_object(body))

    assert ratio_of(prepare) <= MAX_RATIO


@pytest.mark.parametrize("kind", ["messages", "parts", "unknown keys"])
def test_a_chat_body(kind: str) -> None:
    def prepare(size: int) -> Work:
        part = '{"type":"text","text":"a"}'
        bodies = {
            "messages": '{"messages":[' + ",".join(['{"role":"user","content":"a"}'] * (size // 16)) + "]}",
            "parts": '{"messages":[{"role":"user","content":[' + ",".join([part] * (size // 16)) + "]}]}",
            "unknown keys": "{" + ",".join(f'"{number:07}":1' for number in range(size // 8)) + "}",
        }
        body = bodies[kind].encode()
        return lambda: tolerant(lambda: [content_of(one) for one in parse_body(body, ChatBody).messages])

    assert ratio_of(prepare) <= MAX_RATIO


def ratio_of(prepare: Callable[[int], Work]) -> float:
    """How much longer work takes for twice its size, by two doublings; 1 where it takes no time.

    Other processes take cores and caches away: of several tries the least CPU times count. Where memory outgrows a
    cache of the CPU, time grows by more than the work, once: so the next doubling counts where it is less.
    """
    size = 1 << 12
    while (once_s := cpu_s(prepare(size))) < LEAST_S:
        size *= min(16, max(2, round(LEAST_S / once_s)))
        if size > MAX_SIZE:
            return 1.0
    work, four_times_the_work = prepare(size), prepare(4 * size)
    four_s = cpu_s(four_times_the_work)
    for _ in range(6):
        if four_s <= MAX_RATIO**2 * once_s:
            break
        once_s, four_s = max(LEAST_S, min(once_s, cpu_s(work))), min(four_s, cpu_s(four_times_the_work))
    ratio = math.sqrt(four_s / once_s)
    if ratio <= MAX_RATIO:
        return ratio
    work, twice_the_work = four_times_the_work, prepare(8 * size)
    return min(ratio, min(cpu_s(twice_the_work) for _ in range(3)) / min(four_s, cpu_s(work)))


def cpu_s(work: Work) -> float:
    gc.disable()
    started_s = time.process_time()
    try:
        work()
        return time.process_time() - started_s
    finally:
        gc.enable()


def tolerant(work: Work) -> Any:
    """A refusal is an answer too."""
    with suppress(RequestError):
        return work()


@cache
def chain_of(step: str) -> Chain:
    return make_chain([StepConfig(name=step)])
