"""Where sentences end, in several scripts."""

import pytest

from serve_app.preprocessing.sentences import split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["One.", "Two!", "Three?", "Really?!", "yes!!", "no"],
        ["The U.S. Government spends.", "It does."],
        ["She has a Ph.D. in physics.", "He has none."],
        ["I said no.", "He left."],
        ["No. 5 is alive.", "No.", "I don't."],
        ["See Fig. 3 and Vol. II of it.", "Then stop."],
        ["Dr. Smith paid 3.50 to J. Doe.", "He left..."],
        ["J. R. R. Tolkien wrote it.", "A. A. Milne did not."],
        ["It was World War I.", "It ended."],
        ["He works at Apple Inc.", "She left Apple Inc. Cupertino."],
        ["At 5 p.m. he left at last.", "They came at 6 p.m.", "We met."],
        ["I live on Main St.", "He lives in St. Petersburg."],
        ["Well... maybe.", "Then...", "Nothing."],
        ["He waits\u2026 and waits.", "So do we\u2026", "It rains."],
        ["1. The first.", "2. The second.", "It was 2024.", "Then it was over."],
        ["Am 3. Oktober war es z.B. warm.", "Danach nicht."],
        ["Visit www.example.com.", "Now read v1.2.3 of a.b.c."],
        ['He said "I did."', "(She did too.)", "Ok."],
        ["Lt. Dan climbed Mt. Everest with max. 5 others.", "Sr. L\u00f3pez kam ggf. 300 v. Chr. dazu."],
        ["no end", "next part"],
    ],
)
def test_sentences_with_blanks_between_them(sentences: list[str]) -> None:
    separator = "\n\n" if sentences[0] == "no end" else " "
    assert split_sentences(separator.join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["今天天气很好。", "我们去公园吧\uff01", "你来吗\uff1f"],
        ["他说\uff1a“你好。”", "然后走了。"],
        ["他说“你好\uff01”。", "然后走了\uff01\uff1f", "是吗"],
        ["「行こう。」", "彼は立った。"],
        ["「そうです。」と彼は言った。", "私も『はい。』、それだけ。"],
        ["価格は\uff13\uff0e\uff11\uff14です。", "价格是3.14元。", "次"],
        ["好!", "我们走.", "他来了?", "是的。"],
        ["我\u2026\u2026不知道。", "node.js是好的。", "我爱U.S.经济。"],
        ["यह है।", "वह है।"],
        ["안녕하세요.", "저는 갑니다."],
    ],
)
def test_sentences_without_blanks_between_them(sentences: list[str]) -> None:
    separator = " " if sentences[0] == "안녕하세요." else ""
    assert split_sentences(separator.join(sentences)) == sentences


@pytest.mark.parametrize(("text", "sentences"), [("", []), (" \n\n ", []), ("...", ["..."]), ("a.b", ["a.b"])])
def test_what_has_no_sentence_gives_none_and_no_mark_needs_one(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences
