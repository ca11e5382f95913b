"""Where sentences end: by their marks, in scripts with and without blanks between words.

A full stop after an abbreviation, an initial or a number ends a sentence only where what follows may begin one.
"""

import re

from serve_app.preprocessing.text_windows import Span, accepted

_UNSPACED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u2e80-\u2fff\u3005-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
# Ideographic and fullwidth ones, danda, Arabic, Urdu, Armenian, Ethiopic, Khmer, Burmese: a blank need not follow.
_FULL_MARKS = "\u3002\uff01\uff1f\uff61\uff0e\u0964\u0965\u061f\u06d4\u0589\u1362\u17d4\u104b"
_MARKS = f".!?\u2026\u203c\u2047-\u2049{_FULL_MARKS}"
_CLOSERS = "\"'\u201d\u2019\u00bb)\\]\u300d\u300f\u3011\u300b\u3009\u3015\uff09\uff3d\uff63"
_OPENERS = "\"'\u201c\u2018\u00ab(\\[\u300c\u300e\u3010\u300a\u3008\u3014\uff08\uff3b\uff62"
_BEGINNING = re.compile(rf"[{_MARKS}](?<![{_MARKS}]{{2}})|\n(?=\s)")
_ENDING = re.compile(
    rf"(?P<marks>[{_MARKS}]++)(?P<closers>[{_CLOSERS}]{{0,4}}+)(?P<blanks>\s{{0,8}}+)"
    rf"[{_OPENERS}]{{0,3}}+(?P<word>\w{{0,16}}+)|\n\s*\n"
)
_GOES_ON = re.compile(
    f"[{_MARKS},;:\uff0c\uff1b\uff1a\u3001\u3068]|\u3063\u3066"
)  # behind a closing quote: and so he said
_WORD_BREAK = re.compile(rf"[\s{_OPENERS}]")
_MAX_WORD_CHARS = 24

_NEVER_LAST_WORDS = """
mr mrs ms dr prof rev hon gen col capt maj lt sgt gov sen rep pres messrs sra dra
vs cf e.g i.e approx z.b d.h u.a bzw ca evtl ggf inkl vgl sog bspw insb
"""
_NUMBERED_WORDS = "no nr nos fig figs sec vol vols pp art ch eq abb kap bd max min tel str"
_SHORTENED_WORDS = """
etc inc ltd co corp al st mt ft sr jr ave blvd dept est usw chr jh
jan feb mar apr jun jul aug sep sept oct nov dec
"""
_BEGINNING_WORDS = """
a after all although an and are as at because before both but by can did do does each every finally first for from
had has have he her here his how however i if in is it its last many maybe meanwhile more most my no nobody none nothing
now of on once one only our perhaps please several she since so some sometimes soon still thank thanks that the their
then there therefore these they this those though thus to today tomorrow unfortunately until was we were what when
where whether which while who why will with yes yesterday yet you your
aber als am auch auf aus bei da dann das dein der deshalb die dies diese dieser dieses doch du ein eine einer er es
heute hier ich ihr im ist ja jedoch kein keine man mein mit nach nein nun nur ob oder sie sind so und uns unser
viele vom von vor warum was weil wenn wer wie wir wo zu zum zur
"""
_ORDINAL_WORDS = "januar februar märz april mai juni juli august september oktober november dezember jahrhundert"
_NEVER_LAST = frozenset(_NEVER_LAST_WORDS.split())
_NUMBERED = frozenset(_NUMBERED_WORDS.split())  # not the last before a number
_SHORTENED = frozenset(_SHORTENED_WORDS.split())
_BEGINNERS = frozenset(_BEGINNING_WORDS.split())
_AFTER_ORDINALS = frozenset(_ORDINAL_WORDS.split())  # German writes the third as 3.
_NUMBER = re.compile(r"[0-9]|(?:[IVXLC]{2,}|[VX])\b")
_INITIALS = re.compile(r"[^\W\d_]|(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the blanks around them. Blank lines end one too."""
    sentences, start = [], 0
    for _, end in accepted(_BEGINNING, text, _ending_at):
        sentences.append(text[start:end].strip())
        start = end
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ending_at(place: re.Match[str], start: int) -> Span | None:
    """Marks with the quotes and brackets that they close, or a blank line, which end what begins at `start`."""
    match = _ENDING.match(place.string, place.start())
    if match is None or match["marks"] is None:
        return None if match is None else match.span()
    return (match.start(), match.end("closers")) if _is_end(place.string, start, match) else None


def _is_end(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the sentence from `start` on ends with these marks."""
    marks, word = match["marks"], match["word"]
    if not match["blanks"] and match.end("closers") < len(text) and not _ends_without_blank(text, match):
        return False
    if marks != "." and not marks.strip(".\u2026"):  # an ellipsis
        return not word[:1].islower()
    return marks != "." or match["blanks"].count("\n") > 1 or _stops(text, start, match)


def _ends_without_blank(text: str, match: re.Match[str]) -> bool:
    """Whether marks that text follows at once are an end, as Chinese and Japanese write it."""
    marks, following = match["marks"], match.end("closers")
    if any(mark in _FULL_MARKS for mark in marks):
        is_decimal = marks == "\uff0e" and text[following].isdigit()
        return not is_decimal and not (match["closers"] and _GOES_ON.match(text, following))
    if marks.strip(".!?"):
        return False
    before = _UNSPACED.match(text, match.start() - 1) if match.start() else None
    behind = _UNSPACED.match(text, following)
    return before is not None and behind is not None if "." in marks else before is not None or behind is not None


def _stops(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether a single full stop ends a sentence, by the words before and behind it."""
    place, following = match.start(), match["word"]
    near = text[max(start, place - _MAX_WORD_CHARS) : place]
    word = _WORD_BREAK.split(near)[-1]
    is_first = place - start <= _MAX_WORD_CHARS and near.strip() == word
    lowered = word.lower()
    if lowered in _NEVER_LAST:
        return False
    if lowered in _NUMBERED:
        return _NUMBER.match(following) is None
    if word.isdigit():
        return not (is_first and len(word) <= 3) and following.lower() not in _AFTER_ORDINALS
    is_short = lowered in _SHORTENED or _INITIALS.fullmatch(word) is not None
    if not is_short:
        return True
    is_initial_next = len(following) == 1 and text[match.end() : match.end() + 1] == "."
    return not is_first and not is_initial_next and following[:1].isupper() and following.lower() in _BEGINNERS
