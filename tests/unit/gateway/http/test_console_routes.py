"""The console's page and files: their headers, their tags, and what they may load."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.http.browser_guard import hosts_when_bound_to
from serve_app.gateway.http.console_routes import console_routes
from serve_app.gateway.http.openapi import openapi_document
from tests.api_keys import write_keys
from tests.fakes import NO_TLS, ScriptedBackend, serving

ROOT = Path(__file__).parents[4]
FILES = ROOT / "serve_app" / "gateway" / "console"
PATHS = [route.path for route in console_routes()]


@pytest.fixture
async def client(backend: ScriptedBackend, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a Gateway with keys that listens on loopback."""
    write_keys(tmp_path / "keys", "name=web")
    config = GatewayConfig(api_keys_file=str(tmp_path / "keys"), allowed_hosts=hosts_when_bound_to("127.0.0.1"))
    async with (
        serving(build_http_app(DataPlane(backend, config))) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url) as client,
    ):
        yield client


class Loaded(HTMLParser):
    """What a page loads, and what its policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given and tag in ("script", "link")]
        is_inline = tag == "style" or (tag == "script" and "src" not in given)
        self.forbidden += [tag] if is_inline else []
        self.forbidden += [name for name in given if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("path", PATHS)
async def test_files_come_without_a_key_and_under_a_strict_policy(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    kind = {".js": "text/javascript", ".css": "text/css"}.get(Path(path).suffix, "text/html")
    assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/console/app.js"])
async def test_a_browser_that_has_a_file_is_told_so(client: httpx.AsyncClient, path: str) -> None:
    whole = await client.get(path)
    tag = whole.headers["etag"]
    assert whole.headers["cache-control"] == "no-cache"
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await client.get(path, headers={"if-none-match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await client.get(path, headers={"if-none-match": '"other"'})).status_code == 200
    head = await client.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)


async def test_a_page_loads_only_what_is_served_and_has_no_inline_script_or_style(client: httpx.AsyncClient) -> None:
    for page in ("/", "/console"):
        loaded = Loaded()
        loaded.feed((await client.get(page)).text)
        assert loaded.forbidden == []
        addresses = [one for one in loaded.addresses if not one.startswith("data:")]
        assert addresses
        for address in addresses:
            assert (await client.get(str(httpx.URL(str(client.base_url) + page).join(address)))).status_code == 200


def test_modules_import_only_one_another_and_set_no_markup() -> None:
    names = {path.name for path in FILES.iterdir()}
    for path in FILES.glob("*.js"):
        source = path.read_text()
        imported = re.findall(r'^import .* from "(.+)";$', source, re.MULTILINE)
        assert {one.removeprefix("./") for one in imported} <= names, path.name
        assert len(imported) == len(re.findall(r"\bimport\b(?!\.)", source)), path.name
        words = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|localStorage"
        assert re.search(words, source) is None, path.name
    assert not any("@import" in path.read_text() or "url(" in path.read_text() for path in FILES.glob("*.css"))


async def test_the_browser_guard_stands_before_the_console(client: httpx.AsyncClient) -> None:
    for path in ("/", "/console/app.js", "/console/state"):
        refused = await client.get(path, headers={"host": "evil.example"})
        assert (refused.status_code, "allowed_hosts" in refused.text) == (403, True)
        refused = await client.get(path, headers={"origin": "http://evil.example"})
        assert (refused.status_code, "cors_allowed_origins" in refused.text) == (403, True)
    assert (await client.post("/")).status_code == 405
    for path in ("/console/index.html", "/console/other.js", "/console/%2e%2e/api_keys.py"):
        assert (await client.get(path)).status_code == 401  # as any path that needs a key


def test_the_document_of_the_api_has_none_of_the_pages() -> None:
    document = openapi_document().decode()
    assert not [path for path in PATHS if f'"{path}":' in document]


@pytest.mark.process
def test_a_wheel_has_the_files(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    shutil.copytree(ROOT / "serve_app", source / "serve_app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheels.mkdir()
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(wheels)], cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert {f"serve_app/gateway/console/{path.name}" for path in FILES.iterdir()} <= set(packed.namelist())
