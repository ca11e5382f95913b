"""What is taken out of a text, what is left alone, and that it can all be put back."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.preprocessing.pii import KIND_NAMES, Restorer, redact, restore


def found(text: str) -> list[tuple[str, str]]:
    return [(one.kind, one.original) for one in redact(text, KIND_NAMES)[1]]


@pytest.mark.parametrize(
    ("text", "kind", "original"),
    [
        ("write to anna.b+x@mail.example.org, please", "email", "anna.b+x@mail.example.org"),
        ("a@b.de.", "email", "a@b.de"),
        ("card 4111 1111 1111 1111 ok", "card", "4111 1111 1111 1111"),
        ("4111-1111-1111-1111", "card", "4111-1111-1111-1111"),
        ("amex 378282246310005", "card", "378282246310005"),
        ("to DE89 3704 0044 0532 0130 00 now", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("NO9386011117947", "iban", "NO9386011117947"),
        ("from 192.168.0.17, today", "ip", "192.168.0.17"),
        ("at 2001:db8::8a2e:370:7334 again", "ip", "2001:db8::8a2e:370:7334"),
        ("::ffff:10.0.0.1", "ip", "::ffff:10.0.0.1"),
        ("call +49 30 1234567 now", "phone", "+49 30 1234567"),
        ("call (555) 123-4567", "phone", "(555) 123-4567"),
        ("call 030/1234567", "phone", "030/1234567"),
        ("0049 170 1234567", "phone", "0049 170 1234567"),
    ],
)
def test_personal_data_is_found_by_its_form(text: str, kind: str, original: str) -> None:
    assert found(text) == [(kind, original)]


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112",  # Luhn
        "0000 0000 0000 0000 0",
        "DE89 3704 0044 0532 0130 02",  # check digits
        "XX89 3704 0044 0532 0130 00",  # no such country
        "version 1.2.3.4.5 or 999.1.1.1",
        "on 2024-01-15 at 12:30:45",
        "order 1234567, price 1,234.50",
        "user@localhost",
        "a :: b and std::vector",
        "John Smith, 5 Main Street",
    ],
)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert redact(text, KIND_NAMES) == (text, [])


def test_equal_originals_share_a_placeholder_and_others_are_numbered() -> None:
    text, redactions = redact("a@b.de, c@d.de, a@b.de", KIND_NAMES)
    assert text == "<EMAIL_1>, <EMAIL_2>, <EMAIL_1>"
    assert [one.placeholder for one in redactions] == ["<EMAIL_1>", "<EMAIL_2>"]


def test_a_placeholder_that_the_text_holds_already_is_not_used() -> None:
    text, redactions = redact("<EMAIL_1> is not a@b.de", KIND_NAMES)
    assert text == "<EMAIL_1> is not <EMAIL_2>"
    assert restore(text, redactions) == "<EMAIL_1> is not a@b.de"


def test_only_the_kinds_that_are_asked_for_are_taken_out() -> None:
    assert redact("a@b.de 192.168.0.1", ["ip"])[0] == "a@b.de <IP_1>"


_PIECES = ["a@b.de", "+49 30 1234567", "<EMAIL_1>", "<IP_2>", "4111111111111111", "192.168.0.1", " ", "\n", "ß", "x"]


@given(st.lists(st.sampled_from(_PIECES)).map("".join))
def test_a_redacted_text_can_be_put_back(text: str) -> None:
    redacted, redactions = redact(text, KIND_NAMES)
    assert restore(redacted, redactions) == text


@given(st.lists(st.sampled_from(_PIECES)).map("".join), st.lists(st.integers(1, 5)))
def test_a_text_that_grows_is_put_back_like_a_whole_one(text: str, sizes: list[int]) -> None:
    redacted, redactions = redact(text, KIND_NAMES)
    restorer = Restorer(redactions)
    pieces, start = [], 0
    for size in [*sizes, len(redacted)]:
        pieces.append(restorer.feed(redacted[start : start + size]))
        start += size
    assert "".join(pieces) + restorer.flush() == text


def test_nothing_is_held_back_but_what_may_become_a_placeholder() -> None:
    restorer = Restorer(redact("a@b.de", KIND_NAMES)[1])
    given = ["x <", "y", "<E", "MAIL", "_1", "> ", "<EMAIL_2>", "<em", "ail_1>", "<EM"]
    shown = ["x ", "<y", "", "", "", "a@b.de ", "<EMAIL_2>", "", "a@b.de", ""]
    assert [restorer.feed(piece) for piece in given] == shown
    assert restorer.flush() == "<EM"


def test_a_placeholder_of_two_originals_is_left_alone() -> None:
    both = redact("a@b.de", KIND_NAMES)[1] + redact("c@d.de 10.0.0.1", KIND_NAMES)[1]
    assert restore("<EMAIL_1> <IP_1>", both) == "<EMAIL_1> 10.0.0.1"


@pytest.mark.parametrize("piece", ["a", "1", "1 ", "a.", ":", "1.", "+1", "A1", "-", "(1", "@a.", "1-", "f:"])
def test_a_hostile_text_takes_no_longer_than_it_is_long(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    redact(text, KIND_NAMES)
    assert time.process_time() - started < 3
