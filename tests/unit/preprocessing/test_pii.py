"""What is taken out of a text, what is left alone, and that it can all be put back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.preprocessing.pii import KIND_NAMES, Originals, Restorer, redact, redact_all, restore

FULLWIDTH = {ord("4"): 0xFF14, ord("1"): 0xFF11, ord(" "): 0x3000}
ARABIC = {ord("4"): 0x0664, ord("1"): 0x0661}


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
        ("1-800-555-1234", "phone", "1-800-555-1234"),
        ("tel. 01.23.45.67.89", "phone", "01.23.45.67.89"),
        ("whois +1.5551234567", "phone", "+1.5551234567"),
        ("+86 138 1234 5678", "phone", "+86 138 1234 5678"),
        ("(or +49 (0)30 1234567)", "phone", "+49 (0)30 1234567"),
        ("4111.1111.1111.1111", "card", "4111.1111.1111.1111"),
        ("DE89-3704-0044-0532-0130-00", "iban", "DE89-3704-0044-0532-0130-00"),
        ("de89370400440532013000", "iban", "de89370400440532013000"),
        ("ip:2001:db8::1: down", "ip", "2001:db8::1"),
        ("john.o'brien@example.com", "email", "john.o'brien@example.com"),
        ("'john@example.com'", "email", "john@example.com"),
        ("jürgen@example.de", "email", "jürgen@example.de"),
        ("ju\u0308rgen@example.de", "email", "ju\u0308rgen@example.de"),
        ("张三@例子.中国", "email", "张三@例子.中国"),
        ("user@xn--e1afmkfd.xn--p1ai", "email", "user@xn--e1afmkfd.xn--p1ai"),
        ("john@example.com-Adresse", "email", "john@example.com"),
    ],
)
def test_personal_data_is_found_by_its_form(text: str, kind: str, original: str) -> None:
    assert found(text) == [(kind, original)]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("card 4111 1111 1111 1111 12/27 cvv 123", "card <CARD_1> 12/27 cvv 123"),
        ("2 4111 1111 1111 1111", "2 <CARD_1>"),
        ("4111-1111-1111-1111-12/27", "<CARD_1>-12/27"),
        ("4111 1111 1111 1111 5500 0000 0000 0004", "<CARD_1> <CARD_2>"),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFFXXX", "IBAN <IBAN_1> BIC COBADEFFXXX"),
        ("DE89 3704 0044 0532 0130 00 4111 1111 1111 1111", "<IBAN_1> <CARD_1>"),
        ("+49 170 1234567 4111 1111 1111 1111", "<PHONE_1> <CARD_1>"),
        ("555-123-4567 555-987-6543", "<PHONE_1> <PHONE_2>"),
        ("call 555-123-4567 (24/7)", "call <PHONE_1> (24/7)"),
        ("call 030/1234567 (24/7)", "call <PHONE_1> (24/7)"),
        ("(030/1234567)", "(<PHONE_1>)"),
        ("+49 30 1234567 555-987-6543", "<PHONE_1> <PHONE_2>"),
        ("030 123 45 67 030 765 43 21", "<PHONE_1> <PHONE_2>"),
        ("01 02 03 04 05 06 07 08 09 10", "<PHONE_1> <PHONE_2>"),
        ("+1 555 123 4567 555 987 6543", "<PHONE_1> <PHONE_2>"),
        ("a@b.de@c.de", "<EMAIL_1>@c.de"),
        ("192.168.0.1:8080 [2001:db8::1]:443", "<IP_1>:8080 [<IP_2>]:443"),
    ],
)
def test_what_stands_around_it_does_not_hide_it(text: str, redacted: str) -> None:
    assert redact(text, KIND_NAMES)[0] == redacted


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("联系john@example.com谢谢", "联系<EMAIL_1>谢谢"),
        ("卡号4111111111111111谢谢", "卡号<CARD_1>谢谢"),
        ("电话\uff1a+49 30 1234567。", "电话\uff1a<PHONE_1>。"),
        ("住址192.168.0.1です", "住址<IP_1>です"),
        ("john@example.com으로", "<EMAIL_1>으로"),
        ("4111 1111 1111 1111".translate(FULLWIDTH), "<CARD_1>"),
        ("4111\u00a01111\u00a01111\u00a01111", "<CARD_1>"),
        ("+49\u202f30\u202f1234567", "<PHONE_1>"),
        ("555\u2011123\u20114567", "<PHONE_1>"),
        ("4111 1111 1111 1111".translate(ARABIC), "<CARD_1>"),
        ("am 01.02.2024年", "am 01.02.2024年"),
    ],
)
def test_other_scripts_digits_and_blanks_count_as_ours(text: str, redacted: str) -> None:
    changed, redactions = redact(text, KIND_NAMES)
    assert changed == redacted
    assert restore(changed, redactions) == text


def test_texts_of_one_request_share_their_placeholders_and_stay_apart() -> None:
    texts = ["a\0b a@b.de", "<EMAIL_2> c@d.de", "a@b.de"]
    redacted, redactions = redact_all(texts, KIND_NAMES)
    assert redacted == ["a\0b <EMAIL_1>", "<EMAIL_2> <EMAIL_3>", "<EMAIL_1>"]
    assert [(one.placeholder, one.original) for one in redactions] == [("<EMAIL_1>", "a@b.de"), ("<EMAIL_3>", "c@d.de")]


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
        "loss 0.1234567, then +0.1234567",
        "0.1 0.2 0.3 0.4 0.5 0.6",
        "0.4111111111111111",  # a fraction
        "01.02.2024 - 05.02.2024, 01/03/24 10:15",
        "01.02.-05.02.2024, 01 02 2024, 01/2024-12/2024",
        "open 08.00-18.30, 09.15 - 10.45",
        "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18",
        "invoice 00123456",
        "ISBN 978-3-16-148410-0",
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
    restorer = Restorer(Originals(redactions))
    pieces, start = [], 0
    for size in [*sizes, len(redacted)]:
        pieces.append(restorer.feed(redacted[start : start + size]))
        start += size
    assert "".join(pieces) + restorer.flush() == text


def test_nothing_is_held_back_but_what_may_become_a_placeholder() -> None:
    restorer = Restorer(Originals(redact("a@b.de", KIND_NAMES)[1]))
    given = ["x <", "y", "<E", "MAIL", "_1", "> ", "<EMAIL_2>", "<em", "ail_1>", "<EM"]
    shown = ["x ", "<y", "", "", "", "a@b.de ", "<EMAIL_2>", "", "a@b.de", ""]
    assert [restorer.feed(piece) for piece in given] == shown
    assert restorer.flush() == "<EM"


def test_a_placeholder_of_two_originals_is_left_alone() -> None:
    both = redact("a@b.de", KIND_NAMES)[1] + redact("c@d.de 10.0.0.1", KIND_NAMES)[1]
    assert restore("<EMAIL_1> <IP_1>", both) == "<EMAIL_1> 10.0.0.1"
