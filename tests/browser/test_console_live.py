"""The live state in a real browser: which shard is busy, which copy is ill, what is asked for and when."""

import time
from pathlib import Path

from selenium.webdriver import Chrome

from serve_app.backend.protocol import Newcomer
from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from tests.api_keys import write_keys
from tests.browser.chromium import Page
from tests.browser.conftest import gateway
from tests.browser.console_backend import ConsoleBackend, served

DEMO = "[data-model=demo]"


def test_each_shard_shows_how_busy_it_is(page: Page) -> None:
    def shares() -> list[int]:
        found = [one.text.removesuffix(" %") for one in page.all(f"{DEMO} .copy:first-child .share")]
        return [int(one) for one in found if one.isdecimal()]

    def is_near(wanted: list[int]) -> bool:
        found = shares()
        return len(found) == 4 and all(abs(one - other) <= 6 for one, other in zip(found, wanted, strict=True))

    page.until(lambda: is_near([82, 82, 46, 46]))  # two stages of two ranks
    assert [one.text for one in page.all(f"{DEMO} .copy:first-child .stage-name")] == [
        "layers 0\u20135",
        "layers 6\u201311",
    ]
    assert page.text(f"{DEMO} .copy:first-child .memory") == "412 MB"
    heights = [float(one.get_attribute("height") or 0) for one in page.all(f"{DEMO} .copy:first-child rect.busy")]
    assert heights[0] > heights[2] > 10
    label = page.find(f"{DEMO} .copy:first-child .shards").get_attribute("aria-label") or ""
    assert "stage 0, 2 ranks" in label
    assert "KV cache 78" in page.text(f"{DEMO} .copy:first-child .cache")
    assert "waiting for KV cache" in page.text(f"{DEMO} .copy:first-child .load")


def test_a_copy_that_falls_ill_is_seen_and_so_is_its_recovery(page: Page, backend: ConsoleBackend) -> None:
    page.until_text(f"{DEMO} header .chip", "ready")
    for state in ("rebuilding", "failed"):
        backend.states = {"demo-2": state}
        page.until_text(f"{DEMO} .copy[data-state={state}]", "does not answer")
        assert page.text(f"{DEMO} header .chip") == "1 of 2 ready"
        assert {one.text for one in page.all(f"{DEMO} .copy[data-state={state}] .share")} == {"down"}
    backend.states = {"demo": "failed", "demo-2": "failed"}
    page.until_text("#overall", "Not all models answer")
    backend.states = {}
    page.until_text("#overall", "All models answer")
    page.until(lambda: page.text(f"{DEMO} header .chip") == "ready")


def test_tokens_and_their_first_one_are_measured(page: Page, backend: ConsoleBackend) -> None:
    backend.step_s = 0.05
    page.ask("Where is my parcel?")
    rate = page.until(lambda: float(page.text(f"{DEMO} dd")))
    assert 1 < rate < 25
    page.until(lambda: page.all(f"{DEMO} dd")[1].text.removesuffix(" ms").isdecimal())
    assert page.all(f"{DEMO} .sparkline .line")


def test_newcomers_are_told_as_text(page: Page, backend: ConsoleBackend) -> None:
    detail = "<img src=x onerror=alert(1)> no such directory"
    backend.newcomers = {"mine": Newcomer("failed", detail)}
    assert detail in page.until_text(".newcomer", "mine")
    assert page.all("main img") == []


def test_nothing_is_asked_for_while_the_page_is_hidden(page: Page) -> None:
    def num_asked() -> int:
        names = page.run("return performance.getEntriesByType('resource').map((one) => one.name)")
        return sum(str(name).endswith("/console/state") for name in names)

    page.until(lambda: num_asked() >= 2)
    hide = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });"
    page.run(hide + "document.dispatchEvent(new Event('visibilitychange'))", True)
    time.sleep(1.5)  # what was under way has been answered
    before = num_asked()
    time.sleep(2.5)
    assert num_asked() == before
    page.run(hide + "document.dispatchEvent(new Event('visibilitychange'))", False)
    page.until(lambda: num_asked() > before)


def test_a_server_that_is_gone_is_said_to_be(chromium: Chrome, backend: ConsoleBackend) -> None:
    with gateway(DataPlane(backend, GatewayConfig())) as url:
        page = Page(chromium, url)
        page.open("/console")
        page.until_text("#overall", "All models answer")
    page.until_text("#overall", "No answer")
    assert "could not be reached" in page.text("#live-problem")
    assert "stale" in page.until_text("#live-age", "s ago")


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(chromium: Chrome, model_dir: Path, tmp_path: Path) -> None:
    web, ops = write_keys(tmp_path / "keys", "name=web models=demo,vectors", "name=ops admin")
    config = GatewayConfig(api_keys_file=str(tmp_path / "keys"))
    with gateway(DataPlane(served(model_dir), config)) as url:
        page = Page(chromium, url, ignored=["401 (Unauthorized)"])
        page.open()
        page.until_text("#overall", "API key needed")
        assert page.run("return document.activeElement.id") == "key"
        assert page.accessibility_faults() == []
        for key, told in (("nonsense", "the API key is not known here"), (web, "")):
            page.find("#key").send_keys(key)
            page.find("#key-form button").click()
            page.until_text("#key-error", told) if told else page.until_text("#overall", "All models answer")
        names = [one.get_attribute("data-model") for one in page.until(lambda: page.all(".card"))]
        assert names == ["demo", "vectors"]
        assert page.all(f"{DEMO} .rank-name") == []  # /v1/admin/plan is not for this key, and was not asked for
        kept = page.run("return [sessionStorage.length, localStorage.length, document.cookie, location.search]")
        assert kept == [1, 0, "", ""]
        page.ask("hello")
        page.until_text(".speed", "first token")
        page.driver.refresh()
        page.until_text("#overall", "All models answer")
        page.find("#key-toggle").click()
        page.find("#key-forget").click()
        page.until_text("#overall", "API key needed")
        assert page.run("return sessionStorage.length") == 0
        page.find("#key").send_keys(ops)
        page.find("#key-form button").click()
        page.until(lambda: page.all(f"{DEMO} .rank-name"))
        assert page.complaints() == []
        page.driver.get("about:blank")
