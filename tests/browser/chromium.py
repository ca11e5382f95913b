"""A headless Chromium that shows the console, and what a test asks of it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".browser"  # what `make browser` fetches, and the pictures
AXE = KEPT / "node_modules" / "axe-core" / "axe.min.js"
LIMIT_S = 60
ValueT = TypeVar("ValueT")


def start_chromium() -> Chrome:
    """Skips the test where there is no Chromium with its driver."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no Chromium with its driver; `make browser` installs both")
    options = ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    arguments = ["--headless=new", "--window-size=1280,900", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en"]
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []  # it has none for root
    for argument in arguments:
        options.add_argument(argument)
    return Chrome(options, Service(driver))


@dataclass
class Page:
    """A tab at the Gateway's address."""

    driver: Chrome
    url: str
    ignored: list[str] = field(default_factory=list)  # what may stand in the browser's log

    def open(self, path: str = "/") -> None:
        """Load a page with nothing kept from before."""
        self.driver.get(self.url + "/docs")
        self.driver.execute_script("sessionStorage.clear()")
        self.complaints()
        self.driver.get(self.url + path)

    def find(self, css: str) -> WebElement:
        """The first element that fits."""
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        """All that fit."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        """What the first element that fits shows."""
        return self.find(css).text

    def until(self, look: Callable[[], ValueT]) -> ValueT:
        """Wait for something to be true; gives it."""
        ignored = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self.driver, LIMIT_S, poll_frequency=0.05, ignored_exceptions=ignored)
        return wait.until(lambda _driver: look())

    def until_text(self, css: str, wanted: str) -> str:
        """Wait until an element shows a text; gives all that it shows."""
        return self.until(lambda: next((one.text for one in self.all(css) if wanted in one.text), ""))

    def choose(self, css: str, name: str) -> None:
        """Take an entry of a list."""
        Select(self.find(css)).select_by_visible_text(name)

    def task(self, name: str) -> None:
        """Take a task of the playground."""
        found = self.until(lambda: self.find(f"#task-{name}"))
        self.run("arguments[0].scrollIntoView({ block: 'center' })", found)  # from under the bar
        found.click()

    def ask(self, text: str) -> None:
        """Type a text and send it."""
        box = self.find("#field-text")
        box.clear()
        box.send_keys(text)
        self.find("#send").click()

    def run(self, script: str, *arguments: object) -> Any:
        """What a script gives, run beside the page's own policy."""
        return self.driver.execute_script(script, *arguments)

    def set_screen(self, width: int, height: int = 900, *, is_dark: bool = False) -> None:
        """A screen of so many pixels, in the light or in the dark."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, name: str) -> Path:
        """The whole page as an image in KEPT/pictures."""
        path = KEPT / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return window.innerWidth")
        is_dark = self.run("return matchMedia('(prefers-color-scheme: dark)').matches")
        self.set_screen(width, height, is_dark=is_dark)
        assert self.driver.save_screenshot(str(path))
        return path

    def accessibility_faults(self) -> list[str]:
        """What axe-core finds, a line each."""
        if not AXE.is_file():
            pytest.skip("there is no axe-core; `make browser` fetches it")
        self.run(AXE.read_text())
        found = self.driver.execute_async_script("axe.run().then(arguments[0], (error) => arguments[0](String(error)))")
        assert isinstance(found, dict), found
        return [
            f"{fault['id']}: {fault['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for fault in found["violations"]
            for node in fault["nodes"]
        ]

    def complaints(self) -> list[str]:
        """What the browser has logged since the page was loaded: errors of scripts, and of its policy."""
        entries: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        messages = [str(entry["message"]) for entry in entries]
        return [one for one in messages if not any(part in one for part in self.ignored)]
