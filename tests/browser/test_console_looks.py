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
    page.until(lambda: "82" in page.text("[data-model=demo] .share") or None)
    assert page.run("return document.documentElement.scrollWidth") <= width
    page.picture(f"console-{width}-{'dark' if is_dark else 'light'}")
    assert page.accessibility_faults() == []
