"""What the console looks like, and whether everybody can use it: pictures, axe-core, the keyboard."""

import pytest

from tests.browser.chromium import Page
from tests.browser.console_backend import ConsoleBackend

SCREENS = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.mark.parametrize(("width", "is_dark"), SCREENS)
def test_a_page_at_work(page: Page, backend: ConsoleBackend, width: int, is_dark: bool) -> None:
    backend.step_s = 0.01
    backend.states = {"demo-2": "rebuilding"}
    page.set_screen(width, is_dark=is_dark)
    page.find("#compare").click()
    page.ask("Where is my parcel?")
    page.until(
        lambda: len([one for one in page.all(".speed") if "tokens/s" in one.text and "about" not in one.text]) == 2
    )
    page.until_text(".card .chip", "rebuilding")
    page.until(lambda: page.text("[data-model=demo] .share").endswith("%"))
    assert page.run("return document.documentElement.scrollWidth") <= width
    page.picture(f"console-{width}-{'dark' if is_dark else 'light'}")
    assert page.accessibility_faults() == []


@pytest.mark.parametrize("task", ["classify", "embeddings", "rerank"])
def test_other_answers(page: Page, task: str) -> None:
    page.set_screen(390)
    page.task(task)
    if task == "rerank":
        page.find("#field-query").send_keys("parcel")
    page.ask("Where is my parcel?\nI have been billed twice.")
    page.until(lambda: page.all(".answer li"))
    assert page.run("return document.documentElement.scrollWidth") <= 390
    page.picture(f"console-{task}")
    assert page.accessibility_faults() == []


def test_an_error_and_the_settings(page: Page) -> None:
    page.ignored.append("400 (Bad Request)")
    page.find("#settings summary").click()
    page.find("#field-max_tokens").send_keys("100000")
    page.ask("hello")
    page.until(lambda: page.all(".error"))
    page.picture("console-error")
    assert page.accessibility_faults() == []
