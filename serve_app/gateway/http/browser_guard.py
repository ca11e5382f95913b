"""Keeps pages of other sites from driving a server that a browser can reach, on its own machine first of all.

A page may send any request that a form could send, without asking before and without being able to read the answer
(https://fetch.spec.whatwg.org/#cors-preflight-fetch). Its `Origin` gives it away, unless it has pointed a name of its
own at this server's address (DNS rebinding): then the `Host` does.
"""

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import ForbiddenError, RayshardError, UnsupportedMediaTypeError
from serve_app.gateway.http.middleware import refuse

LOOPBACK_HOSTS = ("localhost", "*.localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[^:/?#@\[\]\s]{1,255}))(?::(?P<port>\d{0,5}))?")
_PORTS = {"http": 80, "https": 443}
_FORM_TYPES = {"text/plain", "multipart/form-data"}  # of what a form can send
_CURLS_TYPE = "application/x-www-form-urlencoded"  # a form's too, and what `curl -d` says of JSON
_TEXT_PATHS = "/predictions/"  # TorchServe's, which takes texts
_FORM_PATHS = frozenset(
    {"/v1/files"}
)  # OpenAI's, which takes a form with a file: pages are judged by their origin there


def hosts_when_bound_to(http_host: str | None) -> list[str] | None:
    """The hosts that requests may name when the settings name none; None: any. http_host: where Serve listens."""
    try:
        is_loopback = http_host == "localhost" or ipaddress.ip_address(http_host or "").is_loopback
    except ValueError:
        is_loopback = False
    return list(LOOPBACK_HOSTS) if is_loopback else None


class BrowserGuardMiddleware:
    """Refuses requests for another host's name, of another site's page, and of content that a form could send."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str] | None, allowed_origins: Sequence[str]) -> None:
        self._app = app
        self._allowed_hosts = ["*"] if allowed_hosts is None else [host.lower() for host in allowed_hosts]
        self._allowed_origins = {origin.lower() for origin in allowed_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the request, or answers 403 or 415."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RayshardError as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host, origins = headers.get("host"), headers.getlist("origin")
        if host is not None and not self._is_allowed_host(host):
            raise ForbiddenError(
                f"this server does not go by the host {host[:100]!r}; "
                "if it should, add the name to allowed_hosts of the Gateway"
            )
        for origin in origins:
            if not self._is_allowed_origin(origin, host or "", headers.get("sec-fetch-site")):
                raise ForbiddenError(
                    f"pages of {origin[:100]!r} may not call this server; "
                    "if they should, add that to cors_allowed_origins of the Gateway"
                )
        is_json = not scope["path"].startswith(_TEXT_PATHS) and scope["path"] not in _FORM_PATHS
        if scope["method"] in ("POST", "PUT") and is_json:
            _check_content_type(headers.get("content-type", ""), is_page=bool(origins))

    def _is_allowed_host(self, given: str) -> bool:
        if "*" in self._allowed_hosts:
            return True
        found = _HOST.fullmatch(given)
        name = (found["ipv6"] or found["name"]).rstrip(".").lower() if found is not None else ""
        return any(
            name.endswith(allowed[1:]) if allowed.startswith("*.") else name == allowed
            for allowed in self._allowed_hosts
        )

    def _is_allowed_origin(self, origin: str, host: str, fetch_site: str | None) -> bool:
        """fetch_site: what a browser says of the page, which knows better where a proxy has changed the host."""
        if "*" in self._allowed_origins or origin.lower() in self._allowed_origins:
            return True
        return fetch_site == "same-origin" if fetch_site is not None else _is_same(origin, host)


def _is_same(origin: str, host: str) -> bool:
    """Whether a page is one of this server's own: its origin is the host that the request names."""
    scheme, _, place = origin.partition("://")
    default = _PORTS.get(scheme.lower())
    found, own = _HOST.fullmatch(place), _HOST.fullmatch(host)
    if default is None or found is None or own is None:
        return False
    names = [(one["ipv6"] or one["name"]).lower() for one in (found, own)]
    ports = [int(one["port"] or default) for one in (found, own)]
    return names[0] == names[1] and ports[0] == ports[1]


def _check_content_type(given: str, *, is_page: bool) -> None:
    kind = given.partition(";")[0].strip().lower()
    if kind in _FORM_TYPES or (is_page and kind == _CURLS_TYPE):
        raise UnsupportedMediaTypeError(
            f"content-type {kind} is not read here; send JSON, with the header `Content-Type: application/json`",
            field="content-type",
        )
