"""The Gateway's real application on 127.0.0.1, with scripted models behind it, and a browser that looks at it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from starlette.applications import Starlette

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.browser.chromium import Page, start_chromium
from tests.browser.console_backend import ConsoleBackend, served
from tests.fakes import save_model_dir, serving


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    driver = start_chromium()
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backend(model_dir: Path) -> ConsoleBackend:
    return served(model_dir)


@pytest.fixture
def page(chromium: Chrome, backend: ConsoleBackend) -> Iterator[Page]:
    """The console of an open Gateway. In the end the browser has nothing to complain of."""
    with gateway(DataPlane(backend, GatewayConfig())) as url:
        page = Page(chromium, url)
        page.set_screen(1280)
        page.open()
        page.until_text("#overall", "All models answer")
        yield page
        complaints = page.complaints()
        page.driver.get("about:blank")  # its connections end before the server does
    assert complaints == []


@contextmanager
def gateway(plane: DataPlane) -> Iterator[str]:
    """Its address; it runs in a thread, as the browser's driver waits."""
    app: Starlette = build_http_app(plane)
    found: list[str] = []
    is_started, is_over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(app) as url:
            found.append(url)
            is_started.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert is_started.wait(30)
        yield found[0]
    finally:
        is_over.set()
        thread.join(30)
